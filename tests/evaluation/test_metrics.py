"""The metrics against hand calculation and scikit-image."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from glci_dist.evaluation.metrics import PSNR_LIMIT, composite, hole_l1, photo_metrics, psnr, ssim


def smooth_photos(count: int, size: int, seed: int) -> Tensor:
    """Random photos with structure at several scales: float32 (count, 3, size, size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        torch.nn.functional.interpolate(
            torch.rand(count, 3, side, side, generator=generator), size=size, mode="bilinear"
        )
        for side in (3, 9, size)
    ]
    return torch.stack(layers).mean(dim=0)


def box_mask(count: int, size: int, top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(count, 1, size, size)
    mask[:, :, top : top + height, left : left + width] = 1
    return mask


def channels_last(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize("size", [32, 64, 101])
def test_ssim_and_psnr_agree_with_scikit_image(size: int) -> None:
    photos = smooth_photos(4, size, seed=1)
    strengths = torch.tensor([0.01, 0.1, 0.3, 1.0]).reshape(4, 1, 1, 1)
    completed = photos + strengths * (smooth_photos(4, size, seed=2) - photos)
    for ours, ratio, one, other in zip(
        ssim(completed, photos), psnr(completed, photos), completed, photos, strict=True
    ):
        one, other = channels_last(one), channels_last(other)
        expected = structural_similarity(
            other,
            one,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=2,
        )
        assert float(ours) == pytest.approx(expected, abs=1e-4)
        assert float(ratio) == pytest.approx(peak_signal_noise_ratio(other, one, data_range=1.0), abs=1e-4)


def test_l1_counts_only_the_values_in_the_hole() -> None:
    photos = smooth_photos(2, 16, seed=3)
    masks = box_mask(2, 16, top=2, left=3, height=4, width=5)
    completed = photos + torch.where(masks > 0, torch.tensor([0.02, 0.05]).reshape(2, 1, 1, 1), 10.0)
    assert hole_l1(completed, photos, masks).tolist() == pytest.approx([2.0, 5.0], rel=1e-4)


def test_a_photo_counts_the_same_whatever_the_size_of_its_hole_and_its_batch() -> None:
    photos = smooth_photos(3, 32, seed=4)
    masks = torch.cat([box_mask(1, 32, 1, 1, side, side) for side in (4, 11, 25)])
    completed = composite(smooth_photos(3, 32, seed=5), photos, masks)
    together = photo_metrics(completed, photos, masks)
    for number in range(3):
        alone = slice(number, number + 1)
        single = photo_metrics(completed[alone], photos[alone], masks[alone])
        assert single["hole_l1_x100"][0] == pytest.approx(together["hole_l1_x100"][number], rel=1e-5)
        assert single["psnr_db"][0] == pytest.approx(together["psnr_db"][number], rel=1e-5)
        assert single["ssim"][0] == pytest.approx(together["ssim"][number], rel=1e-5)


def test_a_perfect_completion_has_finite_figures() -> None:
    photos = smooth_photos(1, 32, seed=6)
    perfect = photo_metrics(photos.clone(), photos, box_mask(1, 32, 0, 0, 8, 8))
    assert perfect["hole_l1_x100"][0] == 0
    assert perfect["psnr_db"][0] == PSNR_LIMIT
    assert perfect["ssim"][0] == pytest.approx(1.0)


def test_psnr_is_over_the_whole_composite() -> None:
    photos = torch.full((1, 3, 20, 20), 0.5)
    masks = box_mask(1, 20, 0, 0, 10, 10)
    completed = composite(torch.full_like(photos, 0.6), photos, masks)
    assert float(psnr(completed, photos)) == pytest.approx(-10 * math.log10(0.01 / 4), abs=1e-3)


def test_a_composite_outside_the_hole_is_bitwise_the_photo() -> None:
    photos, completed = smooth_photos(1, 16, seed=7), torch.full((1, 3, 16, 16), float("nan"))
    masks = box_mask(1, 16, 3, 3, 5, 5)
    outside = masks.expand_as(photos) == 0
    assert torch.equal(composite(completed, photos, masks)[outside], photos[outside])


def test_a_mask_without_a_hole_is_refused() -> None:
    photos = smooth_photos(1, 16, seed=8)
    with pytest.raises(ValueError, match="without a hole"):
        hole_l1(photos, photos, torch.zeros(1, 1, 16, 16))


def test_pictures_can_be_drawn_without_loading_torchmetrics() -> None:
    code = (
        "import sys, glci_dist.evaluation.report, glci_dist.evaluation.metrics;sys.exit('torchmetrics' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
