"""One photo from a source to the JPEG that a shard holds, checked by decoding it whole."""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

from glci_dist.data.decode import DecodeError, decode_for_shard
from glci_dist.data.jpeg import SOI
from glci_dist.data.pixels import raise_if_out_of_memory

# Decoded at least this much larger than wanted, libjpeg's own scaling leaves no trace in the resized photo.
_DECODE_MARGIN = 3


class BadPhoto(Exception):
    """The photo cannot be used; the message is the reason."""


def check_head(head: bytes) -> None:
    """BadPhoto where no file that begins so is a photo in a known format; 64 KiB tell each."""
    if head[:2] == SOI:
        return
    from glci_dist.data import other_formats

    try:
        other_formats.check_head(head)
    except DecodeError as fault:
        raise BadPhoto(str(fault)) from fault


def has_several_pictures(encoded: bytes) -> bool:
    """Whether a photo that ``to_shard_jpeg`` took has more pictures than its first, which is the one taken."""
    if encoded[:2] == SOI:  # a thumbnail, or the same picture once more for the other eye
        return False
    from glci_dist.data import other_formats

    return other_formats.has_several_pictures(encoded)


def to_shard_jpeg(encoded: bytes, *, size: int | None, quality: int) -> bytes:
    """The photo as a JPEG in RGB or grey, upright, with a short edge of at most ``size`` px (None: any).

    A JPEG that is so already is returned byte for byte (without junk that a strict decoder would refuse).
    Others are encoded in RGB, 4:4:4, at ``quality`` (1 to 100); transparency becomes white. BadPhoto when it
    cannot be decoded whole: what the loader would refuse, by the same code. MemoryError where memory is short.
    """
    try:
        pixels, jpeg = decode_for_shard(encoded, least=None if size is None else _DECODE_MARGIN * size)
    except DecodeError as fault:
        raise BadPhoto(str(fault)) from fault
    too_large = size is not None and min(pixels.shape[:2]) > size
    if jpeg is not None and not too_large:
        return jpeg
    if size is not None and too_large:
        height, width = pixels.shape[:2]
        scale = size / min(height, width)
        shape = (max(size, round(width * scale)), max(size, round(height * scale)))
        pixels = np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.LANCZOS))
    try:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "444")
    except ValueError as error:
        raise_if_out_of_memory(error)
        raise
