"""Reads and writes plain tars: every member found, or one line on why not; equal photos give equal bytes."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from glci_dist.errors import UserError

_BLOCK = tarfile.BLOCKSIZE
# WebDataset's rule: the key ends at the first dot of the file's own name.
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
_PHOTO_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


def tar_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of a plain tar, in order; one at a time, whatever their number.

    UserError when it is no plain tar, or is cut or damaged; tarfile alone takes a cut or a damaged
    header after the first for the end.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if member.isreg() and not member.issparse():
                    yield member
            _check_end(path, archive.offset)
    except tarfile.ReadError as fault:
        raise UserError(f"{path} is cut, damaged or no plain tar: {fault}; get or build it again") from fault
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault.strerror}") from fault


def photo_rows(path: Path) -> tuple[list[tuple[int, int, str]], int]:
    """(offset, length, key) of each WebDataset sample's photo in a tar, and the number without.

    A sample is a run of members of one key; its photo the jpg, jpeg, png or webp, the first of these
    where it has several. UserError as ``tar_members``.
    """
    rows: list[tuple[int, int, str]] = []
    without = 0
    key, best, row = "", len(_PHOTO_EXTENSIONS), (0, 0, "")

    def finish() -> None:
        nonlocal without
        if best < len(_PHOTO_EXTENSIONS):
            rows.append(row)
        elif key:
            without += 1

    for member in tar_members(path):
        match = _KEY.match(member.name)
        if match is None:  # WebDataset passes over such files, too
            continue
        if match.group(1) != key:
            finish()
            key, best = match.group(1), len(_PHOTO_EXTENSIONS)
        extension = match.group(2).lower()
        rank = _PHOTO_EXTENSIONS.index(extension) if extension in _PHOTO_EXTENSIONS else best
        if rank < best:
            best = rank
            row = (member.offset_data, member.size, key.encode(errors="replace").decode())
    finish()
    return rows, without


def add_photo(archive: tarfile.TarFile, key: str, photo: bytes) -> None:
    """Append ``photo`` as ``key``.jpg, with nothing in its header that differs between machines or days."""
    header = tarfile.TarInfo(f"{key}.jpg")
    header.size = len(photo)
    header.mode = 0o644
    archive.addfile(header, io.BytesIO(photo))


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
