"""Decodes with Pillow: every format except ordinary JPEG, to upright RGB.

A separate module, imported with the first such photo: most corpora have only JPEGs, and every import costs each loader
worker memory.
"""

from __future__ import annotations

import ctypes
import functools
import io
import logging
import warnings
from contextlib import suppress

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from glci_dist.data.pixels import DecodeError, Pixels, check_size, reason_of, unread_format, upright
from glci_dist.data.png_rows import lacks_rows
from glci_dist.data.tiffs import BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT, correct_tiff, tag
from glci_dist.data.unexpected_content import known_file

_ORIENTATION = 274
_STRIP_PIXELS = 4_000_000
_PIXEL_BYTES, _SPARE_BYTES = 32, 64 * 2**20
"""Upper bounds of what decoders need per pixel and photo, as measured; JPEG 2000 needs the most."""
_UNKNOWN_PIXELS = 8_000_000
"""Assumed if the size was not read: WebP allocates memory before it reports the size."""
# Formats that Pillow decodes by starting another program (Ghostscript), or not at all.
_NO_PHOTOS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})

# Pillow's warnings and logs repeat what it then raises or reads anyway; one line per photo and worker would bury a
# run's own lines. The filter is permanent, because catch_warnings is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def decode_other(encoded: bytes, *, orientation: int | None = None) -> Pixels:
    """The first picture of a photo, upright, uint8 (H, W, 3), RGB.

    16 bits become 8 by their high byte, transparency becomes white. ``orientation``: EXIF's, if known; None: from the
    file. DecodeError if the bytes are not a photo, a damaged one, or one whose range of values is unknown. MemoryError
    if memory is short.
    """
    if not encoded:
        raise DecodeError("an empty file")
    # Outside of the try: an error of this machine must not count against a photo.
    formats = _formats()
    pixels = 0
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            # Opening reads only the header, except for formats whose size Pillow itself limits.
            check_size(image.height, image.width)
            pixels = image.height * image.width
            correct_tiff(image, encoded)
            image.load()
            if image.format == "PNG" and _ends_black(image) and lacks_rows(encoded):
                raise DecodeError("its data end before its last rows")
            # After loading: Pillow rotates a TIFF while loading it and then reports it as upright, and a PNG may
            # have its orientation after its pixels.
            turn = _orientation(image) if orientation is None else orientation
            return upright(_to_rgb(image), turn)
    except DecodeError:
        raise
    # Pillow's decoders raise many kinds of errors on damaged bytes: RuntimeError, KeyError, struct.error, MemoryError
    # for a damaged size. All of them count against this photo; but if memory is short they raise such errors too
    # ("broken data stream"), so this is checked.
    except Exception as error:
        if not _has_room((pixels or _UNKNOWN_PIXELS) * _PIXEL_BYTES + _SPARE_BYTES):
            raise MemoryError(f"a photo of {pixels or 'unread'} pixels, {reason_of(error)}") from error
        reason = _unknown(encoded) if isinstance(error, UnidentifiedImageError) else reason_of(error)
        raise DecodeError(reason) from error


def check_head(head: bytes) -> None:
    """DecodeError if no format accepts a file with these first bytes; checked as ``Image.open`` does."""
    untold = []
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept is None:
            untold.append(name)
        elif (known := accept(head[:16])) and not isinstance(known, str):
            return
    try:
        Image.open(io.BytesIO(head), formats=untold).close()
    except UnidentifiedImageError as error:
        raise DecodeError(_unknown(head)) from error
    except Exception:  # decoding will report what is wrong
        return


def has_several_pictures(encoded: bytes) -> bool:
    """Whether a photo that ``decode_other`` decoded has more pictures: an animation, a TIFF with pages."""
    try:
        with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
            return getattr(image, "n_frames", 1) > 1
    except MemoryError:
        raise
    except Exception:  # the first picture was decoded, so damage is in others
        return True


def _has_room(wanted: int) -> bool:
    """Whether this process can still allocate so many bytes; none of them is touched."""
    try:
        np.empty(wanted, np.uint8)
    except MemoryError:
        return False
    return True


@functools.cache
def _formats() -> list[str]:
    # In Pillow's order: common formats first, those with weak signatures (TGA) later.
    Image.preinit()
    Image.init()
    _silence_libtiff()
    return [name for name in Image.ID if name not in _NO_PHOTOS]


def _silence_libtiff() -> None:
    """Stop libtiff from printing a line for each damaged strip: Pillow raises anyway."""
    # If the library is not found, its lines are printed, which does no other harm.
    with suppress(OSError, AttributeError):
        if not features.check("libtiff"):
            return
        with open("/proc/self/maps", errors="replace") as maps:
            # Paths may have spaces.
            libraries = {line.rstrip("\n").split(maxsplit=5)[5] for line in maps if "/libtiff" in line}
        for library in libraries:  # Pillow's own or the system's
            loaded = ctypes.CDLL(library)
            loaded.TIFFSetErrorHandler(None)
            loaded.TIFFSetWarningHandler(None)


def _ends_black(image: Image.Image) -> bool:
    """Whether the last row is all zeros, as one that was never decoded is."""
    return not np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any()


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # malformed EXIF loses no pixel: the photo is not rotated
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _to_rgb(image: Image.Image) -> Pixels:
    """uint8 (H, W, 3), not rotated; converted in strips, to avoid a second whole picture of four channels."""
    bits = _deep_bits(image)
    if image.mode in ("I", "F") and not bits:
        raise DecodeError(f"pixels of 32 bits (mode {image.mode}), whose range is not known")
    if image.format == "TIFF" and tag(image, SAMPLE_FORMAT, 1) == 2:
        raise DecodeError("signed pixels, whose range is not known")
    is_negative = image.format == "TIFF" and bool(bits) and tag(image, PHOTOMETRIC, 1) == 0
    convert = functools.partial(_deep_strip, bits=bits, is_negative=is_negative) if bits else _strip
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        return convert(image)
    photo = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        photo[top:bottom] = convert(image.crop((0, top, width, bottom)))
    return photo


def _deep_bits(image: Image.Image) -> int:
    """Bits of a grey pixel, if more than 8; else 0."""
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 16  # a grey PNG in older Pillows; PGM, which Pillow scales to 65535
    if not image.mode.startswith("I;16"):
        return 0
    # TIFFs of scanners may have 12 bits, which Pillow does not scale.
    return min(16, max(8, tag(image, BITS_PER_SAMPLE, 16)))


def _strip(image: Image.Image) -> Pixels:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("RGB"))


def _deep_strip(image: Image.Image, *, bits: int, is_negative: bool) -> Pixels:
    values = np.asarray(image)
    grey = np.clip(values >> (bits - 8), 0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    if is_negative:  # zero is white; Pillow inverts only 8-bit grey
        grey = 255 - grey
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def _unknown(encoded: bytes) -> str:
    """Describes bytes that Pillow does not know: other photo formats, failed downloads, web pages."""
    if unread := unread_format(encoded):
        return unread
    if kind := known_file(encoded):
        return f"{kind}, no photo"
    if encoded[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, no photo"
    if encoded[:4] in (b"II*\0", b"MM\0*"):
        return "a TIFF that is damaged, or whose pixels are of a kind that is not read here"
    return "no photo in a known format"
