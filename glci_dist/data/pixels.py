"""What every decoder of photos shares: their pixels, what is refused before decoding, and what a refusal says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""(H, W, 3), RGB."""

MOST_PIXELS = 178_956_970
"""A larger photo is refused: a damaged or hostile header may claim any size. It is Pillow's own limit."""

MOST_ASPECT = 100
"""A photo whose longer side is more than so many times its shorter one is refused: scaled to a short edge it
would fill the memory (1 x 65,500 px at a short edge of 64 are 268 million pixels)."""

MOST_BYTES = 512 << 20
"""A larger file is refused before it is read: ``MOST_PIXELS`` of three bytes each, not compressed, are no more."""


class DecodeError(Exception):
    """A photo cannot be decoded; the message is the reason, in one line."""


def check_size(height: int, width: int) -> None:
    """DecodeError for a size that is no photo's; called with what the header says, before any pixel is decoded."""
    if height < 1 or width < 1:
        raise DecodeError(f"{width} x {height} px: it has no pixels")
    if height * width > MOST_PIXELS:
        raise DecodeError(f"{width} x {height} px is more than {MOST_PIXELS} pixels")
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise DecodeError(f"{width} x {height} px: one side is more than {MOST_ASPECT} times the other")


def too_many_bytes(size: int) -> str:
    """Why a file of ``size`` bytes is no photo; empty where it may be one."""
    if size <= MOST_BYTES:
        return ""
    return f"{size:,} bytes are more than a photo has: at most {MOST_BYTES:,} for the {MOST_PIXELS:,} pixels allowed"


def reason_of(error: Exception) -> str:
    """One line that says what a decoder raised; with its type where the text alone may say nothing (KeyError)."""
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    return (
        text if isinstance(error, OSError | ValueError | SyntaxError | EOFError) else f"{type(error).__name__}: {text}"
    )


def unread_format(encoded: bytes) -> str:
    """What the bytes are where they are a photo in a format that may not be read here; empty where they are not.

    The first 16 bytes are enough.
    """
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
    """MemoryError where ``error`` says that the machine has too little: that is no photo's fault.

    For decoders that ask for as much as a checked size needs. libjpeg and OpenCV say it by errors of their own.
    """
    if isinstance(error, MemoryError):
        raise error
    if "insufficient memory" in str(error).lower() or "memory allocation" in str(error).lower():
        raise MemoryError(reason_of(error)) from error


def upright(photo: Pixels, orientation: int) -> Pixels:
    """The photo as EXIF's ``orientation`` (1 to 8) says that it stands; itself for 1, else a contiguous copy."""
    if orientation == 1:
        return photo
    if orientation >= 5:
        photo = photo.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        photo = photo[:, ::-1]
    if orientation in (3, 4, 7, 8):
        photo = photo[::-1]
    return np.ascontiguousarray(photo)
