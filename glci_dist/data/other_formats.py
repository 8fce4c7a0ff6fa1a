"""Photos that Pillow decodes: every format but ordinary JPEG, made RGB and upright in one way.

A module apart, imported when the first such photo comes: most corpora are JPEG alone, and each loader worker pays
for what it imports.
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

from glci_dist.data.answers import known_file
from glci_dist.data.pixels import DecodeError, Pixels, check_size, reason_of, unread_format, upright
from glci_dist.data.png_rows import lacks_rows
from glci_dist.data.tiffs import BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT, mend_tiff, tag

_ORIENTATION = 274
_STRIP_PIXELS = 4_000_000
_PIXEL_BYTES, _SPARE_BYTES = 32, 64 * 2**20
"""What decoders take for a photo at most, as measured: JPEG 2000 the most for each pixel."""
_UNKNOWN_PIXELS = 8_000_000
"""Taken for a photo whose size was not read: WebP asks for its memory before it tells."""
# What Pillow can say of pixels only by starting another program (Ghostscript), or not at all.
_NO_PHOTOS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})

# It warns of, and logs, what it then raises or reads anyway; a line for each such photo of each worker would bury
# what a run says. The filter stays, because putting it back (catch_warnings) is not safe beside other threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def decode_other(encoded: bytes, *, orientation: int | None = None) -> Pixels:
    """The first picture of a photo, upright, uint8 (H, W, 3), RGB.

    16 bits become 8 by their high byte, transparency becomes white. ``orientation``: EXIF's, where it is known;
    None: as the file says. DecodeError when the bytes are no photo, a damaged one, or one of numbers without
    a known range. MemoryError when the machine has too little for it.
    """
    if not encoded:
        raise DecodeError("an empty file")
    # Outside of what follows: a fault of this machine is no photo's.
    formats = _formats()
    pixels = 0
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            # Opening reads the header only, but for the formats that Pillow refuses too large by itself.
            check_size(image.height, image.width)
            pixels = image.height * image.width
            mend_tiff(image, encoded)
            image.load()
            if image.format == "PNG" and _ends_black(image) and lacks_rows(encoded):
                raise DecodeError("its data end before its last rows")
            # Asked after loading: Pillow turns a TIFF while it loads it and then calls it upright, and a PNG
            # may say after its pixels how it stands.
            turn = _orientation(image) if orientation is None else orientation
            return upright(_to_rgb(image), turn)
    except DecodeError:
        raise
    # Pillow's decoders are many hands' work, and raise all sorts on damaged bytes: RuntimeError, KeyError,
    # struct.error, MemoryError for a size that a damaged field names. Whatever it is, it is this photo's; but where
    # memory is short they raise all sorts too ("broken data stream"), so the memory is asked.
    except Exception as error:
        if not _has_room((pixels or _UNKNOWN_PIXELS) * _PIXEL_BYTES + _SPARE_BYTES):
            raise MemoryError(f"a photo of {pixels or 'unread'} pixels, {reason_of(error)}") from error
        reason = _unknown(encoded) if isinstance(error, UnidentifiedImageError) else reason_of(error)
        raise DecodeError(reason) from error


def check_head(head: bytes) -> None:
    """DecodeError where no format knows a file by its first bytes, ``head``; as ``Image.open`` asks each."""
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
    except Exception:  # as above: decoding says what is wrong
        return


def has_several_pictures(encoded: bytes) -> bool:
    """Whether a photo that ``decode_other`` took has more pictures than the one: an animation, a TIFF of pages."""
    try:
        with Image.open(io.BytesIO(encoded), formats=_formats()) as image:
            return getattr(image, "n_frames", 1) > 1
    except MemoryError:
        raise
    except Exception:  # as above, but only what is beside the picture is damaged
        return True


def _has_room(wanted: int) -> bool:
    """Whether this process may still take so many bytes; none of them is touched."""
    try:
        np.empty(wanted, np.uint8)
    except MemoryError:
        return False
    return True


@functools.cache
def _formats() -> list[str]:
    # In Pillow's own order: the common ones first, those that know theirs by next to nothing (TGA) later.
    Image.preinit()
    Image.init()
    _silence_libtiff()
    return [name for name in Image.ID if name not in _NO_PHOTOS]


def _silence_libtiff() -> None:
    """Stop libtiff from printing a line for each damaged strip: Pillow raises, and the photo is named once."""
    # Where the library cannot be found its lines are printed, and nothing else is lost by it.
    with suppress(OSError, AttributeError):
        if not features.check("libtiff"):
            return
        with open("/proc/self/maps", errors="replace") as maps:
            # A path may have spaces in it.
            libraries = {line.rstrip("\n").split(maxsplit=5)[5] for line in maps if "/libtiff" in line}
        for library in libraries:  # the one that Pillow has loaded, its own or the system's
            loaded = ctypes.CDLL(library)
            loaded.TIFFSetErrorHandler(None)
            loaded.TIFFSetWarningHandler(None)


def _ends_black(image: Image.Image) -> bool:
    """Whether the last row is all zeros, as one that was never decoded is."""
    return not np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any()


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as above, but malformed EXIF takes no pixel away: the photo stands as it is stored
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _to_rgb(image: Image.Image) -> Pixels:
    """uint8 (H, W, 3), as the picture is stored; in strips, so that no second picture of four channels is held."""
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
    """Bits of a grey pixel of more than 8; 0 where it has no more."""
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 16  # a grey PNG in older Pillows; PGM, which Pillow scales to 65535
    if not image.mode.startswith("I;16"):
        return 0
    # A scanner's 12 bits in a TIFF, which Pillow leaves as they are.
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
    if is_negative:  # zero is white: Pillow minds it in grey of 8 bits only
        grey = 255 - grey
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def _unknown(encoded: bytes) -> str:
    """What bytes that Pillow does not know may be: what phones write and failed downloads leave under a .jpg's name."""
    if unread := unread_format(encoded):
        return unread
    if kind := known_file(encoded):
        return f"{kind}, no photo"
    if encoded[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, no photo"
    if encoded[:4] in (b"II*\0", b"MM\0*"):
        return "a TIFF that is damaged, or whose pixels are of a kind that is not read here"
    return "no photo in a known format"
