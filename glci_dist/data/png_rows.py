"""Whether a PNG's data have all of its rows. Pillow accepts data that end between rows, and leaves the rest black."""

from __future__ import annotations

import struct
import zlib

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 2**20


def lacks_rows(encoded: bytes) -> bool:
    """Whether the data of a PNG that Pillow has decoded decompress to fewer bytes than its pixels need."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", encoded, 16)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    expected = 0
    for x, y, right, down in passes:
        columns, rows = -(-(width - x) // right), -(-(height - y) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits * _SAMPLES[colour] + 7) // 8)
    return _unpacked(encoded, expected) < expected


def _unpacked(encoded: bytes, enough: int) -> int:
    """Bytes that the picture's data decompress to, counted up to ``enough``."""
    unpacker, found, place = zlib.decompressobj(), 0, 8
    while place + 8 <= len(encoded) and found < enough and not unpacker.eof:
        length, kind = struct.unpack_from(">I4s", encoded, place)
        if kind == b"IDAT":
            packed = encoded[place + 8 : place + 8 + length]
            while packed and found < enough and not unpacker.eof:
                found += len(unpacker.decompress(packed, _PIECE))
                packed = unpacker.unconsumed_tail
        place += length + 12
    while found < enough and not unpacker.eof and (piece := unpacker.decompress(b"", _PIECE)):
        found += len(piece)
    return found
