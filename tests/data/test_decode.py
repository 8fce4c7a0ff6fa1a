"""Encoded photos become pixels of a given short edge, or a reason why not."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from glci_dist.data.decode import DecodeError, decode
from tests.data.conftest import draw_photo


def as_jpeg(photo: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(photo, quality=95)


def with_pillow(photo: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, kind, lossless=True)
    return buffer.getvalue()


PHOTO = draw_photo(1, 96, 128)
JPEG = as_jpeg(PHOTO)


def test_a_jpeg_is_decoded_to_its_rgb_pixels() -> None:
    photo = decode(JPEG, short_edge=None)
    assert (photo.shape, photo.dtype) == (PHOTO.shape, np.uint8)
    assert np.abs(photo.astype(int) - PHOTO).mean() < 2


@pytest.mark.parametrize(("height", "width"), [(96, 128), (128, 96), (200, 200), (33, 500), (20, 21)])
@pytest.mark.parametrize("short_edge", [20, 32, 47, 64, 300])
def test_the_shorter_side_gets_just_the_length_that_was_asked(height: int, width: int, short_edge: int) -> None:
    photo = decode(as_jpeg(draw_photo(2, height, width)), short_edge=short_edge)
    assert min(photo.shape[:2]) == short_edge
    scale = short_edge / min(height, width)
    assert abs(photo.shape[0] - height * scale) < 1
    assert abs(photo.shape[1] - width * scale) < 1


@pytest.mark.parametrize("short_edge", [24, 37, 48, 90])
def test_a_photo_is_scaled_by_area(short_edge: int) -> None:
    size = (round(128 * short_edge / 96), short_edge)
    expected = cv2.resize(PHOTO, size, interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(decode(JPEG, short_edge=short_edge) - expected).mean() < 2.5


def test_a_grey_jpeg_gets_three_equal_channels() -> None:
    photo = decode(with_pillow(Image.fromarray(PHOTO).convert("L"), "jpeg"), short_edge=32)
    assert photo.shape[2] == 3
    assert (photo == photo[:, :, :1]).all()


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_other_formats_are_decoded_too(kind: str, mode: str) -> None:
    encoded = with_pillow(Image.fromarray(PHOTO).convert(mode), kind)
    assert (decode(encoded, short_edge=None) == PHOTO).all()
    assert min(decode(encoded, short_edge=40).shape[:2]) == 40


def claiming(encoded: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its header."""
    start = encoded.index(b"\xff\xc0") + 5
    return encoded[:start] + height.to_bytes(2) + width.to_bytes(2) + encoded[start + 4 :]


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xff\xd8",
        b"no photo at all",
        JPEG[: len(JPEG) // 2],
        JPEG[:30],
        with_pillow(Image.fromarray(PHOTO), "png")[:500],
        claiming(JPEG, 65_000, 65_000),
    ],
    ids=["empty", "two bytes", "text", "half", "header", "cut png", "huge"],
)
def test_damaged_photos_are_refused_with_a_reason_in_one_line(encoded: bytes) -> None:
    for short_edge in (None, 60):
        with pytest.raises(DecodeError) as refusal:
            decode(encoded, short_edge=short_edge)
        assert str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("short_edge", [None, 96])
def test_a_jpeg_of_the_right_size_is_decoded_into_the_target(short_edge: int | None) -> None:
    target = np.zeros((96, 128, 3), np.uint8)
    scratch = np.zeros(10**6, np.uint8)
    assert decode(JPEG, short_edge=short_edge, target=target, scratch=scratch) is target
    assert (target == decode(JPEG, short_edge=96)).all()
    assert not scratch.any()


@pytest.mark.parametrize("short_edge", [40, 48, 96, 120])
@pytest.mark.parametrize("scratch_bytes", [0, 10, 96 * 128 * 3, 10**6])
@pytest.mark.parametrize("shape", [(96, 96, 3), (128, 96, 3), (48, 64, 3)])
def test_a_photo_of_another_size_leaves_the_target_alone(
    short_edge: int, scratch_bytes: int, shape: tuple[int, int, int]
) -> None:
    target = np.zeros(shape, np.uint8)
    photo = decode(JPEG, short_edge=short_edge, target=target, scratch=np.zeros(scratch_bytes, np.uint8))
    assert (photo == decode(JPEG, short_edge=short_edge)).all()
    assert not target.any()
