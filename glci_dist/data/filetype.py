"""Archive types by a file's first bytes, not by its name; opening zips and unpacking compressed tars."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal, cast

from glci_dist.errors import UserError

Kind = Literal["zip", "tar", "gzip", "bzip2", "xz"]

_BLOCK = tarfile.BLOCKSIZE
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"PK00PK\x03\x04")
_ZIP_END = b"PK\x05\x06"
_ZIP_END_BYTES = 22
_COMPRESSED: dict[bytes, Kind] = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
_OPENERS: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
_OTHERS = {
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"\x1f\x9d": "compressed with compress",
    b"\x5d\0\0": "compressed with lzma",
    b"LZIP": "compressed with lzip",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
    **dict.fromkeys((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*"), "a photo itself"),
}
_DAMAGED = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error)


def kind_of(path: Path) -> Kind:
    """The type of the archive ``path``, or its compression. UserError if it is not one that is supported."""
    if not path.exists():
        raise UserError(f"{path} does not exist; SOURCE is a folder, .zip or .tar of photos")
    if not path.is_file():  # a pipe would be waited for, and cannot be read out of order
        raise UserError(f"{path} is no folder, .zip or .tar of photos: it is a pipe or a device")
    with open(path, "rb") as file:
        start = file.read(2 * _BLOCK)
    if begins_tar(start):
        return "tar"
    if start.startswith(_ZIP_STARTS):
        return "zip"
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            return kind
    other = next((what for magic, what in _OTHERS.items() if start.startswith(magic)), None)
    if other is None and _zip_end(path):
        return "zip"  # with a prefix, such as a self-extracting one
    if other and "photo" not in other:
        raise UserError(f"{path} is {other}, which is not read here; unpack it and give the folder or the .tar")
    told = "it is empty" if not start else (f"it is {other}" if other else "or it is damaged")
    raise UserError(f"{path} is no folder, .zip or .tar of photos ({told})")


def begins_tar(start: bytes) -> bool:
    """Whether a file that begins with ``start`` (1024 bytes, or the whole file) is a plain tar."""
    if len(start) < _BLOCK:
        return False
    if not any(start):  # an empty archive
        return True
    try:
        tarfile.TarInfo.frombuf(start[:_BLOCK], tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def unpack_tar(path: Path, kind: Kind, target: Path) -> None:
    """Decompress ``path``, a tar of this ``kind`` of compression, into the plain tar ``target``, a new file."""
    target.unlink(missing_ok=True)
    try:
        with _OPENERS[kind](path, "rb") as file, open(target, "xb") as plain:
            packed = cast(IO[bytes], file)
            start = packed.read(2 * _BLOCK)
            if not begins_tar(start):
                raise UserError(
                    f"{path} is compressed with {kind}, but what is in it is no tar; "
                    "unpack it and give what is in it (a folder, .zip or .tar of photos)"
                )
            plain.write(start)
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (*_DAMAGED, OSError) as fault:
        if isinstance(fault, OSError) and fault.errno is not None:  # without errno it is bz2's error for damage
            raise
        raise UserError(f"{path} is damaged or cut: {fault}; get it again") from fault


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip. UserError if it is damaged, truncated, or one part of several."""
    with open(path, "rb") as file:
        first_part = file.read(4) == b"PK\x07\x08"
    end = _zip_end(path)
    if first_part or (end and end[4:6] not in (b"\0\0", b"\xff\xff")):
        raise UserError(
            f"{path} is one part of a zip in several; make one of them (zip -s 0 PARTS.zip --out whole.zip)"
        )
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeError, EOFError, ValueError) as fault:
        raise UserError(f"{path} is damaged or cut: {fault}; get it again") from fault
    begin = min((entry.header_offset for entry in archive.infolist()), default=0)
    if begin > 0 and _zip_end(path, begin):
        archive.close()
        raise UserError(
            f"{path} is several zips, one behind another (joined by cat?), and reading gives the last alone; "
            "give each by itself"
        )
    return archive


def _zip_end(path: Path, size: int | None = None) -> bytes | None:
    """The zip's end record, if it ends the file, or ends the file's first ``size`` bytes."""
    with open(path, "rb") as file:
        size = file.seek(0, 2) if size is None else size
        start = file.seek(max(0, size - _ZIP_END_BYTES - 0xFFFF))
        tail = file.read(size - start)
    place = tail.rfind(_ZIP_END)
    if place < 0 or len(tail) - place < _ZIP_END_BYTES:
        return None
    end = tail[place:]
    comment = int.from_bytes(end[20:22], "little")
    return end if len(end) == _ZIP_END_BYTES + comment else None
