"""Reads and writes plain tars: detects truncated and damaged ones, and writes equal bytes for equal photos."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from glci_dist.data.members import Link, Member
from glci_dist.errors import UserError

_BLOCK = tarfile.BLOCKSIZE
# GNU tar's types: the rest of a file that began in another volume, a folder in an incremental backup.
_CONTINUED, _DUMPED_FOLDER = b"M", b"D"
_WHAT = {tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a named pipe"}
# tarfile's errors for a damaged header, sparse map or extended header.
_DAMAGED = (tarfile.TarError, ValueError, OverflowError, IndexError, EOFError)


def tar_entries(path: Path) -> Iterator[Member | Link]:
    """The files and links of a plain tar, in order; other entries, except folders, are members with a fault.

    UserError if it is not a plain tar, or is truncated or damaged; tarfile alone takes a damaged header after the first
    for the end.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if member.type == _CONTINUED:
                    raise UserError(f"{path} is one volume of a tar in several; unpack them together (tar -xMf)")
                if not member.isdir() and member.type != _DUMPED_FOLDER:
                    yield _entry(member)
            _check_end(path, archive.offset)
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault.strerror}") from fault
    except _DAMAGED as fault:
        raise UserError(f"{path} is cut, damaged or no plain tar: {_reason(fault)}; get or build it again") from fault


def read_pieces(tar: IO[bytes], member: Member, most: int) -> bytes:
    """The first ``most`` bytes of a member, with zeros for a sparse file's holes; OSError if the tar ends within it."""
    size, stored = min(member.bytes, most), member.offset
    tar.seek(stored)
    if member.pieces is None:
        return _read_whole(tar, size)
    content = bytearray(size)
    for place, length in member.pieces:
        if place + length > member.bytes:
            raise OSError("a sparse file whose map points beyond its end")
        wanted = max(0, min(length, size - place))
        tar.seek(stored)
        content[place : place + wanted] = _read_whole(tar, wanted)
        stored += length
    return bytes(content)


def add_photo(archive: tarfile.TarFile, key: str, photo: bytes) -> None:
    """Append ``photo`` as ``key``.jpg, with a header that does not depend on machine, user or time."""
    header = tarfile.TarInfo(f"{key}.jpg")
    header.size = len(photo)
    header.mode = 0o644
    archive.addfile(header, io.BytesIO(photo))


def _entry(member: tarfile.TarInfo) -> Member | Link:
    stamp = int(member.mtime)
    if member.islnk() or member.issym():
        return Link(member.name, member.linkname, hard=member.islnk(), stamp=stamp)
    if not member.isreg():
        what = _WHAT.get(member.type, f"a member of a type that is not known here ({member.type!r})")
        return Member(member.name, 0, stamp, fault=f"{what}, not a file")
    sparse = cast("list[tuple[int, int]] | None", member.sparse)  # typed otherwise, by mistake
    pieces = None if sparse is None else tuple((place, length) for place, length in sparse)
    return Member(member.name, member.size, stamp, member.offset_data, pieces)


def _reason(fault: Exception) -> str:
    if isinstance(fault, OverflowError) or "cannot fit" in str(fault):
        return "a header gives a size that no file has"
    if "unexpected end of data" in str(fault):
        return f"{fault}; if it is the first volume of several (tar -M), unpack them together (tar -xMf)"
    return str(fault)


def _read_whole(tar: IO[bytes], length: int) -> bytes:
    content = tar.read(length)
    if len(content) < length:
        raise OSError("the tar ends within this photo")
    return content


def _check_end(path: Path, offset: int) -> None:
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise UserError(
                f"{path} is cut or damaged: at byte {offset} stands neither a file nor its end; get or build it again"
            )
        while rest := file.read(1 << 20):
            if rest.strip(b"\0"):
                raise UserError(
                    f"{path} goes on after its end of archive at byte {offset} (tars joined by cat?); "
                    "pack its files into one archive"
                )
