"""Photos that Pillow decodes without a word into other pixels than they hold."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from glci_dist.data.decode import DecodeError
from glci_dist.data.other_formats import decode_other as decode
from tests.data.conftest import draw_photo

WIDTH, HEIGHT = 64, 48
PICTURE = draw_photo(11, HEIGHT, WIDTH)
DEEP = PICTURE.astype(np.uint16) * 257


def png(rows: bytes, *, interlaced: bool = False, colour: int = 2, bits: int = 8) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, interlaced)
    packed = zlib.compress(rows)
    halves = chunk(b"IDAT", packed[:100]) + chunk(b"IDAT", packed[100:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + halves + chunk(b"IEND", b"")


def lines(picture: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in picture)


def interlaced(picture: np.ndarray, passes: int) -> bytes:
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    return b"".join(lines(picture[y::down, x::right]) for x, y, right, down in steps[:passes])


def tiff(data: bytes, *, order: str, bits: int, photometric: int, planes: int = 1, sign: int = 1) -> bytes:
    fields = [(256, 3, WIDTH), (257, 3, HEIGHT), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    ends = 8 + 2 + 12 * 11 + 4
    size = len(data) // planes
    # Of several values the first follows the directory; the data after them.
    values = struct.pack(f"{order}{planes}H", *[bits] * planes) if planes > 1 else b""
    offsets = [ends + len(values) + 8 * planes * (planes > 1) + size * plane for plane in range(planes)]
    fields += [(273, 4, offsets[0]), (277, 3, planes), (278, 3, HEIGHT), (279, 4, size)]
    fields += [(284, 3, 2 if planes > 1 else 1), (339, 3, sign)]
    directory = b""
    for tag, kind, value in fields:
        many, place = 1, 0
        if planes > 1 and tag in (258, 273, 279):
            many, place = planes, ends + {258: 0, 273: len(values), 279: len(values) + 4 * planes}[tag]
        if many > 1:
            stored = struct.pack(f"{order}I", place)
        else:
            stored = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, many) + stored
    tables = b""
    if planes > 1:
        tables = (
            values + struct.pack(f"{order}{planes}I", *offsets) + struct.pack(f"{order}{planes}I", *[size] * planes)
        )
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(fields))
    return head + directory + bytes(4) + tables + data


@pytest.mark.parametrize(
    "photo",
    [
        png(lines(PICTURE[: HEIGHT // 2])),
        png(lines(PICTURE[: HEIGHT - 1])),
        png(lines(DEEP[: HEIGHT // 2, :, :1].astype(">u2")), colour=0, bits=16),
        png(interlaced(PICTURE, 6), interlaced=True),
    ],
    ids=["half", "one row", "grey of 16 bits", "interlaced"],
)
def test_a_png_whose_data_end_before_its_last_row_is_no_photo(photo: bytes) -> None:
    with pytest.raises(DecodeError, match="rows"):
        decode(photo)


@pytest.mark.parametrize("is_interlaced", [False, True])
def test_a_png_whose_last_row_is_black_is_a_photo(is_interlaced: bool) -> None:
    picture = PICTURE.copy()
    picture[-5:] = 0
    rows = interlaced(picture, 7) if is_interlaced else lines(picture)
    np.testing.assert_array_equal(decode(png(rows, interlaced=is_interlaced)), picture)


def test_a_grey_tiff_of_16_bits_whose_zero_is_white_is_no_negative() -> None:
    grey = DEEP[:, :, 0]
    seen = decode(tiff((65535 - grey).astype("<u2").tobytes(), order="<", bits=16, photometric=0))
    np.testing.assert_array_equal(seen[:, :, 0], PICTURE[:, :, 0])


@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_of_16_bits_in_a_tiff_are_not_read_as_bytes(order: str) -> None:
    planes = DEEP.transpose(2, 0, 1).astype(f"{order}u2").tobytes()
    seen = decode(tiff(planes, order=order, bits=16, photometric=2, planes=3))
    np.testing.assert_array_equal(seen, PICTURE)


def test_signed_bytes_in_a_tiff_have_no_known_range() -> None:
    signed = (PICTURE[:, :, 0].astype(int) - 128).astype(np.int8).tobytes()
    with pytest.raises(DecodeError, match="range is not known"):
        decode(tiff(signed, order="<", bits=8, photometric=1, sign=2))


def fields(photo: bytes) -> dict[int, tuple[int, int]]:
    """Where a little-endian TIFF keeps its fields, by tag: place of the value, number of values."""
    (directory,) = struct.unpack_from("<I", photo, 4)
    (count,) = struct.unpack_from("<H", photo, directory)
    entries = [
        struct.unpack_from("<HHI", photo, place) for place in range(directory + 2, directory + 2 + 12 * count, 12)
    ]
    return {tag: (directory + 10 + 12 * number, many) for number, (tag, _, many) in enumerate(entries)}


@pytest.mark.parametrize(("stored", "rows_per_strip"), [(HEIGHT // 2, HEIGHT), (40, 16)])
def test_a_tiff_whose_jpeg_strips_have_too_few_rows_is_no_photo(stored: int, rows_per_strip: int) -> None:
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(PICTURE[:stored]))
    image.save(buffer, "TIFF", compression="jpeg", tiffinfo={278: rows_per_strip})
    photo = bytearray(buffer.getvalue())
    assert decode(bytes(photo)).shape == (stored, WIDTH, 3)
    struct.pack_into("<I", photo, fields(bytes(photo))[257][0], HEIGHT)
    with pytest.raises(DecodeError, match="fewer rows"):
        decode(bytes(photo))


def test_a_tiff_whose_colour_map_is_of_8_bits_is_not_black() -> None:
    buffer = io.BytesIO()
    image = Image.fromarray(PICTURE).quantize(64)
    image.save(buffer, "TIFF")
    photo = bytearray(buffer.getvalue())
    place, many = fields(bytes(photo))[320]
    (start,) = struct.unpack_from("<I", photo, place)
    colours = np.frombuffer(bytes(photo[start : start + 2 * many]), "<u2")
    assert colours.max() > 255
    photo[start : start + 2 * many] = (colours >> 8).astype("<u2").tobytes()
    np.testing.assert_array_equal(decode(bytes(photo)), np.asarray(image.convert("RGB")))
