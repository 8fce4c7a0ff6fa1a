"""Shared by all decoders: the pixel array's type, limits on sizes, errors, and rotation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""(H, W, 3), RGB."""

MOST_PIXELS = 178_956_970
"""Pillow's own limit; a damaged or malicious header may claim any size."""

MOST_ASPECT = 100
"""Limit of the longer side over the shorter one: scaled to a short edge, such a photo would fill the memory
(1 x 65,500 px at a short edge of 64 are 268 million pixels)."""

MOST_BYTES = 512 << 20
"""Limit of a file's size, checked before it is read: ``MOST_PIXELS`` of three bytes each, uncompressed."""


class DecodeError(Exception):
    """A photo cannot be decoded; the message is the reason, in one line."""


def check_size(height: int, width: int) -> None:
    """DecodeError for a size outside of the limits; called with the header's size, before decoding."""
    if height < 1 or width < 1:
        raise DecodeError(f"{width} x {height} px: it has no pixels")
    if height * width > MOST_PIXELS:
        raise DecodeError(f"{width} x {height} px is more than {MOST_PIXELS} pixels")
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise DecodeError(f"{width} x {height} px: one side is more than {MOST_ASPECT} times the other")


def too_many_bytes(size: int) -> str:
    """Why a file of ``size`` bytes is refused; empty if it is not."""
    if size <= MOST_BYTES:
        return ""
    return f"{size:,} bytes are more than a photo has: at most {MOST_BYTES:,} for the {MOST_PIXELS:,} pixels allowed"


def reason_of(error: Exception) -> str:
    """A decoder's error in one line, with its type where the text alone says too little (KeyError)."""
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    return (
        text if isinstance(error, OSError | ValueError | SyntaxError | EOFError) else f"{type(error).__name__}: {text}"
    )


def unread_format(encoded: bytes) -> str:
    """A message if the first 16 bytes are of a photo in a format that may not be supported here; else empty."""
    brand = encoded[8:12] if encoded[4:8] == b"ftyp" else b""
    if brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"):
        kind = "HEIC"
    elif brand in (b"avif", b"avis"):
        kind = "AVIF"
    elif encoded[:2] == b"\xff\x0a" or encoded[:8] == b"\0\0\0\x0cJXL ":
        kind = "JPEG XL"
    elif encoded[:8] == b"\0\0\0\x0cjP  ":
        kind = "JPEG 2000"
    else:
        return ""
    return f"a{'n' if kind == 'AVIF' else ''} {kind} photo, which is not read here: convert it to JPEG"


def raise_if_out_of_memory(error: Exception) -> None:
    """Raise MemoryError if ``error`` means that memory is short, which must not count against the photo.

    For decoders that allocate what a checked size needs. libjpeg and OpenCV report it by errors of their own.
    """
    if isinstance(error, MemoryError):
        raise error
    if "insufficient memory" in str(error).lower() or "memory allocation" in str(error).lower():
        raise MemoryError(reason_of(error)) from error


def upright(photo: Pixels, orientation: int) -> Pixels:
    """The photo rotated by EXIF's ``orientation`` (1 to 8); itself for 1, else a contiguous copy."""
    if orientation == 1:
        return photo
    if orientation >= 5:
        photo = photo.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        photo = photo[:, ::-1]
    if orientation in (3, 4, 7, 8):
        photo = photo[::-1]
    return np.ascontiguousarray(photo)
