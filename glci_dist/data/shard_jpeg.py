"""Converts a source's photo to a shard's JPEG, and checks it by decoding it completely."""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

from glci_dist.data.decode import decode_for_shard
from glci_dist.data.jpeg import SOI
from glci_dist.data.pixels import raise_if_out_of_memory

# Decoded at this many times the wanted size, libjpeg's own scaling is not visible in the resized photo.
_DECODE_MARGIN = 3


def check_head(head: bytes) -> None:
    """DecodeError if a file that begins with ``head`` (64 KiB) is not a photo in a known format."""
    if head[:2] != SOI:
        from glci_dist.data import other_formats

        other_formats.check_head(head)


def has_several_pictures(encoded: bytes) -> bool:
    """Whether a photo that ``to_shard_jpeg`` converted has more pictures than the first, which it uses."""
    if encoded[:2] == SOI:  # others would be thumbnails, or the second of a stereo pair
        return False
    from glci_dist.data import other_formats

    return other_formats.has_several_pictures(encoded)


def to_shard_jpeg(encoded: bytes, *, size: int | None, quality: int) -> bytes:
    """The photo as an upright JPEG in RGB or grey, with a short edge of at most ``size`` px (None: any).

    A JPEG of that kind is returned byte for byte (without junk that a strict decoder would refuse). Others are encoded
    in RGB, 4:4:4, at ``quality`` (1 to 100); transparency becomes white. DecodeError if it cannot be decoded
    completely, by the loader's own code; MemoryError if memory is short.
    """
    pixels, jpeg = decode_for_shard(encoded, least=None if size is None else _DECODE_MARGIN * size)
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
