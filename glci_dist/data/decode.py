"""Decodes photos to upright pixels; the only decoder, used by the build, the loader and everything else.

Ordinary JPEG is decoded by libjpeg-turbo, with warnings as errors; a file that it refuses although no pixel is lost is
repaired and decoded again. Pillow decodes everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import cv2
import numpy as np
import simplejpeg

from glci_dist.data.jpeg import SOI, orientation_of
from glci_dist.data.jpeg_repair import repaired
from glci_dist.data.pixels import DecodeError, Pixels, check_size, raise_if_out_of_memory, reason_of, upright

__all__ = ["DecodeError", "Pixels", "decode", "decode_for_shard"]

_Read = TypeVar("_Read")


def decode(
    encoded: bytes, *, short_edge: int | None, target: Pixels | None = None, scratch: Pixels | None = None
) -> Pixels:
    """Decode a photo to uint8 (H, W, 3), RGB, upright, with a short edge of ``short_edge`` px (None: not scaled).

    JPEG photos are scaled by the decoder to the smallest of its sizes that is large enough, then exactly: by area
    averaging if that shrinks them, linearly if it enlarges them.

    Both buffers only save time. A JPEG that needs no scaling is decoded into ``target``, uint8 (h, w, 3) and
    contiguous, if it has that size; then ``target`` itself is returned. Others are decoded into ``scratch``, uint8
    (n,), if it is large enough, so the result is valid only until the next call.

    Raises ``DecodeError`` if the bytes are not a photo or a damaged one, and, before decoding, if its size would fill
    the memory; ``MemoryError`` if memory is short, however the decoder reports it.
    """
    photo = _read_jpeg(encoded, lambda jpeg: _decode_jpeg(jpeg, short_edge, target, scratch))
    if photo is not None:
        return photo
    photo = _other(encoded)
    return _scale(photo, photo.shape[0], photo.shape[1], short_edge)


def decode_for_shard(encoded: bytes, *, least: int | None) -> tuple[Pixels, bytes | None]:
    """The photo upright, uint8 (H, W, 3), perhaps reduced to a short edge of at least ``least`` px (None: never).

    Also the JPEG in RGB or grey that decodes to exactly these pixels, if there is one: the photo itself, or repaired.
    Raises as ``decode``.
    """
    return _read_jpeg(encoded, lambda jpeg: _decode_jpeg_for_shard(jpeg, least)) or (_other(encoded), None)


def _read_jpeg(encoded: bytes, read: Callable[[bytes], _Read]) -> _Read | None:
    """``read`` of a JPEG, or of its repaired version; None if Pillow may support its format instead."""
    if encoded[:2] != SOI:
        return None
    try:
        return read(encoded)
    except DecodeError:
        raise
    # simplejpeg raises ValueError; any other error also comes from this photo, unless memory is short.
    except Exception as error:
        raise_if_out_of_memory(error)
        accepted = repaired(encoded, error)
    if accepted is None:
        return None
    try:
        return read(accepted)
    except DecodeError:
        raise
    except Exception as error:  # as above
        raise_if_out_of_memory(error)
        raise DecodeError(reason_of(error)) from error


def _decode_jpeg(encoded: bytes, short_edge: int | None, target: Pixels | None, scratch: Pixels | None) -> Pixels:
    height, width = simplejpeg.decode_jpeg_header(encoded)[:2]
    check_size(height, width)
    orientation = orientation_of(encoded)
    as_it_is = short_edge is None or short_edge == min(height, width)
    if as_it_is and orientation == 1 and target is not None and target.shape == (height, width, 3):
        simplejpeg.decode_jpeg(encoded, buffer=target)
        return target
    fits = scratch is not None and scratch.size >= height * width * 3
    least = short_edge or 0
    photo = simplejpeg.decode_jpeg(encoded, min_height=least, min_width=least, buffer=scratch if fits else None)
    return upright(_scale(photo, height, width, short_edge), orientation)


def _decode_jpeg_for_shard(encoded: bytes, least: int | None) -> tuple[Pixels, bytes | None]:
    height, width, colour, _ = simplejpeg.decode_jpeg_header(encoded)
    check_size(height, width)
    orientation = orientation_of(encoded)
    scale = 1.0 if least is None else min(1.0, least / min(height, width))
    photo = simplejpeg.decode_jpeg(encoded, min_height=int(height * scale), min_width=int(width * scale))
    same = photo.shape[:2] == (height, width) and orientation == 1 and colour not in ("CMYK", "YCCK")
    return upright(photo, orientation), encoded if same else None


def _other(encoded: bytes) -> Pixels:
    from glci_dist.data.other_formats import decode_other

    return decode_other(encoded, orientation=orientation_of(encoded) if encoded[:2] == SOI else None)


def _scale(photo: Pixels, height: int, width: int, short_edge: int | None) -> Pixels:
    """``photo``, of encoded ``height`` and ``width``, scaled to ``short_edge``."""
    now = min(height, width)
    if short_edge is None or now == short_edge:
        return photo
    # From the encoded size, because the decoder rounds its sizes up.
    size = (round(width * short_edge / now), round(height * short_edge / now))
    if photo.shape[1::-1] == size:
        return photo
    method = cv2.INTER_AREA if size[1] < photo.shape[0] else cv2.INTER_LINEAR
    try:
        return np.asarray(cv2.resize(photo, size, interpolation=method), dtype=np.uint8)
    except cv2.error as error:
        raise_if_out_of_memory(error)
        raise
