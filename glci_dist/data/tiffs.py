"""Corrects TIFFs that Pillow or libtiff would silently decode into wrong pixels."""

from __future__ import annotations

from PIL import Image, ImagePalette, TiffImagePlugin

from glci_dist.data.jpeg import rows_of
from glci_dist.data.pixels import DecodeError

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
_LENGTH, _COMPRESSION, _OFFSETS, _ROWS_PER_STRIP, _PLANES, _COLOUR_MAP = 257, 259, 273, 278, 284, 320
_TILE_LENGTH, _TILE_OFFSETS = 323, 324
_PLAIN, _JPEG = 1, 7


def tag(image: Image.Image, number: int, absent: int) -> int:
    """A TIFF field's value, the first if it has several; ``absent`` if there is none."""
    found = getattr(image, "tag_v2", {}).get(number, absent)
    first = found[0] if isinstance(found, tuple) and found else found
    return first if isinstance(first, int) else absent


def correct_tiff(image: Image.Image, encoded: bytes) -> None:
    """Correct how a TIFF that is opened but not loaded will be read; does nothing for other formats.

    DecodeError if its JPEG strips have fewer rows than they should.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    _correct_planes(image)
    _correct_colour_map(image)
    if tag(image, _COMPRESSION, _PLAIN) == _JPEG and tag(image, _PLANES, 1) == 1:
        _check_jpeg_rows(image, encoded)


def _correct_planes(image: TiffImagePlugin.TiffImageFile) -> None:
    """16-bit separate planes: Pillow would read each byte of an uncompressed TIFF as a pixel."""
    if tag(image, BITS_PER_SAMPLE, 1) != 16 or tag(image, _PLANES, 1) != 2:
        return
    if tag(image, _COMPRESSION, _PLAIN) != _PLAIN or image.mode not in ("RGB", "RGBA"):
        return
    order = "L" if image.tag_v2.prefix == b"II" else "B"
    image.tile = [
        tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
        for tile in image.tile
        if isinstance(tile.args, tuple)
    ]


def _correct_colour_map(image: TiffImagePlugin.TiffImageFile) -> None:
    """A colour map whose values are all below 256 is one of 8 bits, as for libtiff's tools, not of 16."""
    colours = image.tag_v2.get(_COLOUR_MAP)
    if image.mode in ("P", "PA") and colours and max(colours) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def _check_jpeg_rows(image: TiffImagePlugin.TiffImageFile, encoded: bytes) -> None:
    """DecodeError if a strip's or tile's JPEG has too few rows: libtiff fills them with black and only warns."""
    length, fields = tag(image, _LENGTH, 0), image.tag_v2
    rows = tag(image, _TILE_LENGTH, 0) if _TILE_OFFSETS in fields else tag(image, _ROWS_PER_STRIP, length)
    for number, start in enumerate(fields.get(_TILE_OFFSETS) or fields.get(_OFFSETS) or ()):
        wanted = rows if _TILE_OFFSETS in fields else min(rows, length - number * rows)
        if 0 < rows_of(encoded, start) < wanted:
            raise DecodeError(f"its JPEG number {number + 1} has fewer rows than the {wanted} that it stands for")
