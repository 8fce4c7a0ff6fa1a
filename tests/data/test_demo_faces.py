"""The demo's corpus: repeatable, varied, and shaped like faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from glci_dist.data.demo_faces import render_face, write_corpus
from glci_dist.errors import UserError

FACES = 64


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """``(FACES, 96, 96, 3)`` in [0, 1]."""
    return np.stack([render_face(3, number) for number in range(FACES)]).astype(np.float64) / 255


def test_a_face_is_a_function_of_seed_and_number() -> None:
    first = render_face(7, 41)
    render_face(7, 42)
    assert np.array_equal(render_face(7, 41), first)
    assert not np.array_equal(render_face(7, 42), first)
    assert not np.array_equal(render_face(8, 41), first)


@pytest.mark.parametrize("size", [16, 63, 96, 160])
def test_a_face_has_the_size_asked_for(size: int) -> None:
    face = render_face(0, 2**40, size)
    assert face.shape == (size, size, 3)
    assert face.dtype == np.uint8


def test_a_face_looks_the_same_at_every_size() -> None:
    # Noise and strands differ from size to size; a face twice as large, reduced, must be the same person.
    for number in range(4):
        small = render_face(0, number, 64).astype(np.float64)
        large = render_face(0, number, 128).reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(small - large).mean() < 8


def test_faces_are_well_exposed(faces: np.ndarray) -> None:
    brightness = faces.mean(axis=(1, 2, 3))
    assert brightness.min() > 0.12
    assert brightness.max() < 0.85
    assert (faces >= 1).mean() < 0.02


def test_no_two_faces_are_alike(faces: np.ndarray) -> None:
    flat = faces[:, ::4, ::4].reshape(FACES, -1)
    apart = np.abs(flat[:, None] - flat[None]).mean(axis=-1) + np.eye(FACES)
    assert apart.min() > 0.03


def test_skins_walls_and_hair_vary_over_faces(faces: np.ndarray) -> None:
    cheeks, walls, crowns = faces[:, 52:62, 36:60], faces[:, 4:24, 2:12], faces[:, 8:20, 40:56]
    for region in (cheeks, walls, crowns):
        assert region.mean(axis=(1, 2)).std(axis=0).min() > 0.08


def test_a_face_is_no_mirror_image_of_itself(faces: np.ndarray) -> None:
    # Means of 4 x 4 px leave pose and light, not noise and strands, which without them differ by 0.025.
    blocks = faces.reshape(FACES, 24, 4, 24, 4, 3).mean(axis=(2, 4))[:, 4:20, 6:18]
    difference = np.abs(blocks - blocks[:, :, ::-1]).mean(axis=(1, 2, 3))
    assert difference.min() > 0.01
    assert np.median(difference) > 0.05


def test_eyes_stand_at_the_same_place_in_all_faces(faces: np.ndarray) -> None:
    # On the mean of many faces the eyes stay dark spots; were they anywhere, they would average out.
    mean = faces.mean(axis=(0, 3))
    cheek = mean[54:60, 33:42].mean()
    for left in (33, 54):
        assert mean[42:50, left : left + 9].min() < 0.85 * cheek


def test_the_corpus_is_the_same_from_one_process_and_from_two(tmp_path: Path) -> None:
    for processes in (1, 2):
        write_corpus(tmp_path / str(processes), photos=20, seed=5, size=48, processes=processes)
    alone, together = sorted((tmp_path / "1").iterdir()), sorted((tmp_path / "2").iterdir())
    assert [path.name for path in alone] == [f"face-{number:06d}.jpg" for number in range(20)]
    assert [path.name for path in together] == [path.name for path in alone]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(alone, together, strict=True))


def test_the_files_are_photos_of_the_faces(tmp_path: Path) -> None:
    write_corpus(tmp_path, photos=3, seed=5, processes=1)
    for number in range(3):
        photo = simplejpeg.decode_jpeg((tmp_path / f"face-{number:06d}.jpg").read_bytes())
        assert photo.shape == (96, 96, 3)
        assert np.abs(photo.astype(int) - render_face(5, number)).mean() < 4


def test_a_corpus_may_be_written_over_itself_but_not_over_other_files(tmp_path: Path) -> None:
    write_corpus(tmp_path, photos=3, seed=5, size=16, processes=1)
    write_corpus(tmp_path, photos=3, seed=6, size=16, processes=1)
    with pytest.raises(UserError, match=r"face-000002\.jpg"):
        write_corpus(tmp_path, photos=2, seed=5, size=16, processes=1)


@pytest.mark.parametrize(("name", "value"), [("photos", 0), ("size", 8), ("processes", 0)])
def test_counts_that_cannot_be_are_refused(name: str, value: int, tmp_path: Path) -> None:
    asked = {"photos": 2, "size": 16, "processes": 1} | {name: value}
    with pytest.raises(UserError, match=f"{name} is {value}"):
        write_corpus(tmp_path, seed=0, **asked)
