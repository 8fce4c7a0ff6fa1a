"""From an encoded photo to its pixels at a short edge: JPEG by libjpeg-turbo, other formats by Pillow."""

from __future__ import annotations

import io

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

MOST_PIXELS = 100_000_000
"""A larger photo is refused: a damaged or hostile header may claim any size."""


class DecodeError(Exception):
    """A photo cannot be decoded; the message is the reason, in one line."""


def decode(
    encoded: bytes, *, short_edge: int | None, target: Pixels | None = None, scratch: Pixels | None = None
) -> Pixels:
    """Decode a photo to uint8 (H, W, 3), RGB, its shorter side ``short_edge`` px long (None: as it is).

    JPEG photos are scaled by the decoder to the least of its sizes that is large enough, then exactly: by
    area where that makes them smaller, linearly where it makes them larger.

    Both buffers only save time. A JPEG that needs no scaling is decoded into ``target``, uint8 (h, w, 3) and
    contiguous, where it has that size; then ``target`` itself is returned. Others are decoded into
    ``scratch``, uint8 (n,), where it is large enough, so the result holds only until the next call.

    Raises ``DecodeError`` when the bytes are no photo, or a damaged one.
    """
    if encoded[:2] == b"\xff\xd8":
        return _decode_jpeg(encoded, short_edge, target, scratch)
    photo = _decode_other(encoded)
    return _scale(photo, photo.shape[0], photo.shape[1], short_edge)


def _decode_jpeg(encoded: bytes, short_edge: int | None, target: Pixels | None, scratch: Pixels | None) -> Pixels:
    try:
        height, width = simplejpeg.decode_jpeg_header(encoded)[:2]
        _check_size(height, width)
        as_it_is = short_edge is None or short_edge == min(height, width)
        if as_it_is and target is not None and target.shape == (height, width, 3):
            simplejpeg.decode_jpeg(encoded, buffer=target)
            return target
        fits = scratch is not None and scratch.size >= height * width * 3
        least = short_edge or 0
        photo = simplejpeg.decode_jpeg(encoded, min_height=least, min_width=least, buffer=scratch if fits else None)
    except ValueError as error:
        raise DecodeError(_one_line(error)) from error
    return _scale(photo, height, width, short_edge)


def _decode_other(encoded: bytes) -> Pixels:
    # Imported here because most corpora are JPEG alone, and each loader worker pays for what it imports.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            _check_size(image.height, image.width)
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise DecodeError("not a photo in a known format") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DecodeError(_one_line(error)) from error


def _scale(photo: Pixels, height: int, width: int, short_edge: int | None) -> Pixels:
    """``photo``, of encoded ``height`` and ``width``, at its short edge."""
    now = min(height, width)
    if short_edge is None or now == short_edge:
        return photo
    # From the encoded size, because the decoder rounds its own up.
    size = (round(width * short_edge / now), round(height * short_edge / now))
    if photo.shape[1::-1] == size:
        return photo
    method = cv2.INTER_AREA if size[1] < photo.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(photo, size, interpolation=method), dtype=np.uint8)


def _check_size(height: int, width: int) -> None:
    if height * width > MOST_PIXELS:
        raise DecodeError(f"{width} x {height} px is more than {MOST_PIXELS} pixels")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
