"""One photo from a source to the JPEG that a shard holds, checked by decoding it whole."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

# EXIF's orientation tag, and what brings a photo of each value upright.
_ORIENTATION = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Decoded at least this much larger than wanted, libjpeg's own scaling leaves no trace in the resized photo.
_DECODE_MARGIN = 3


class BadPhoto(Exception):
    """The photo cannot be used; the message is the reason."""


def to_shard_jpeg(encoded: bytes, *, size: int | None, quality: int) -> bytes:
    """The photo as a JPEG in RGB or grey, upright, with a short edge of at most ``size`` px (None: any).

    A JPEG that is so already is returned byte for byte. Others are encoded in RGB, 4:4:4, at
    ``quality`` (1 to 100); transparency becomes white. BadPhoto when it cannot be decoded whole.
    """
    try:
        return _to_shard_jpeg(encoded, size, quality)
    except Image.DecompressionBombError as fault:
        raise BadPhoto(str(fault)) from fault
    except Image.UnidentifiedImageError as fault:
        raise BadPhoto("no photo in a known format" if encoded else "an empty file") from fault
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as fault:
        raise BadPhoto(" ".join(str(fault).split()) or type(fault).__name__) from fault


def _to_shard_jpeg(encoded: bytes, size: int | None, quality: int) -> bytes:
    # Opening reads the header only, and refuses sizes that would fill the memory. The content decides what
    # a photo is, not its name.
    with Image.open(io.BytesIO(encoded)) as image:
        too_large = size is not None and min(image.size) > size
        plain_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
        turn = _TO_UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
        if plain_jpeg and turn is None and not too_large:
            simplejpeg.decode_jpeg(encoded, "GRAY" if image.mode == "L" else "RGB")
            return encoded
        photo = _decode_jpeg(encoded, image, size) if plain_jpeg else _decode(image)
    if turn is not None:
        photo = photo.transpose(turn)
    if size is not None and min(photo.size) > size:
        scale = size / min(photo.size)
        shape = (max(size, round(photo.width * scale)), max(size, round(photo.height * scale)))
        photo = photo.resize(shape, Image.Resampling.LANCZOS)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(photo), quality, "RGB", "444")


def _decode_jpeg(encoded: bytes, image: Image.Image, size: int | None) -> Image.Image:
    scale = 1.0 if size is None else min(1.0, _DECODE_MARGIN * size / min(image.size))
    pixels = simplejpeg.decode_jpeg(
        encoded, "RGB", min_height=int(image.height * scale), min_width=int(image.width * scale)
    )
    return Image.fromarray(pixels)


def _decode(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise BadPhoto(f"pixels of 32 bits (mode {image.mode}), whose range is not known")
    if image.mode.startswith("I;16"):
        high_bytes: NDArray[Any] = np.asarray(image) >> 8
        return Image.fromarray(high_bytes.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
