"""The baselines on real faces give the figures that the project's table is read against."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glci_dist.config import HolesConfig
from glci_dist.evaluation.baselines import mean_colour, telea
from glci_dist.evaluation.protocol import centre_crop, frozen_protocol
from tests.evaluation.measured import evaluated


def face_photos(faces_zip: Path, count: int, size: int) -> list[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(faces_zip) as archive:
        names = [name for name in archive.namelist() if name.startswith("val/") and name.endswith(".jpg")]
        photos = []
        for name in names[:: len(names) // count][:count]:
            photo = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
            scale = size / min(photo.size)
            photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BOX)
            photos.append((name, centre_crop(np.asarray(photo), size)))
    return photos


def test_the_baselines_reproduce_the_known_figures_on_real_faces(faces_zip: Path) -> None:
    colour = (0.536, 0.436, 0.395)
    protocol = frozen_protocol("box", 64, HolesConfig(min_side=19, max_side=38))
    result = evaluated({"mean colour": mean_colour(colour), "Telea": telea}, face_photos(faces_zip, 224, 64), protocol)
    # Known over all 673 photos: mean colour 21.4 / 19.8, Telea 11.3 / 23.8; a third of them moves that
    # by less than 0.5 (standard error).
    assert result.summary("mean colour", "hole_l1_x100").value == pytest.approx(21.4, abs=1.2)
    assert result.summary("mean colour", "psnr_db").value == pytest.approx(19.8, abs=0.8)
    assert result.summary("Telea", "hole_l1_x100").value == pytest.approx(11.3, abs=0.8)
    assert result.summary("Telea", "psnr_db").value == pytest.approx(23.8, abs=0.8)


def test_telea_continues_a_flat_photo_into_its_hole() -> None:
    photos = torch.empty(1, 32, 32, 3, dtype=torch.uint8)
    photos[...] = torch.tensor([200, 100, 50], dtype=torch.uint8)
    masks = torch.zeros(1, 1, 32, 32)
    masks[:, :, 8:20, 10:25] = 1
    blanked = photos * (masks.permute(0, 2, 3, 1) < 0.5)
    completed = telea(blanked, masks)
    assert completed.dtype == torch.float32
    expected = torch.tensor([200, 100, 50]).reshape(1, 3, 1, 1) / 255
    # OpenCV adds a direction term of up to the root of 2, and rounds, even on a flat photo.
    assert (completed - expected).abs().max() <= 3.5 / 255


def test_the_mean_colour_is_in_rgb_order() -> None:
    photos, masks = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.ones(2, 1, 8, 8)
    completed = mean_colour((0.1, 0.5, 0.9))(photos, masks)
    assert completed.shape == (2, 3, 8, 8)
    assert completed[1, :, 3, 3].tolist() == pytest.approx([0.1, 0.5, 0.9])
