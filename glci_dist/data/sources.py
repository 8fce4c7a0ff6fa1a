"""Photos as they come: a folder, a .zip or a .tar, listed by name and read one at a time."""

from __future__ import annotations

import bz2
import fnmatch
import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from glci_dist.data.tars import tar_members
from glci_dist.errors import UserError

PHOTO_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Member:
    """One photo of a source."""

    name: str
    """Path below the source, with ``/``."""
    bytes: int
    """Size in the source, not compressed."""
    stamp: int
    """What else changes when the photo does: a zip's checksum, else the modification time."""
    offset: int = 0
    """First byte of the photo in a tar; 0 in a folder or zip."""


@dataclass(frozen=True)
class Source:
    """The photos of a source, sorted by name, so that a folder and its zip or tar are alike."""

    path: Path
    kind: str
    """``folder``, ``zip`` or ``tar``."""
    photos: tuple[Member, ...]
    skipped: int
    """Files that match ``include`` and are no photos by their extension, or are hidden."""

    def fingerprint(self) -> str:
        """Hex digits that change when a photo is added, removed, renamed or changed."""
        digest = hashlib.sha256()
        for photo in self.photos:
            digest.update(f"{photo.name}\0{photo.bytes}\0{photo.stamp}\n".encode(errors="replace"))
        return digest.hexdigest()


def open_source(path: Path, *, include: str = "*") -> Source:
    """List the photos of ``path`` whose name matches ``include`` (a glob in which ``*`` matches ``/`` too).

    UserError when ``path`` is none of folder, zip, tar; is damaged; or has no photo that matches.
    """
    kind, members = _list(path)
    chosen = {member.name: member for member in members if fnmatch.fnmatchcase(member.name, include)}
    photos = sorted((member for member in chosen.values() if _is_photo(member.name)), key=lambda photo: photo.name)
    if not photos:
        matching = "" if include == "*" else f" that matches --include {include!r}"
        raise UserError(
            f"{path} has no photo{matching}; photos end in {', '.join(PHOTO_EXTENSIONS)}"
            + (f" ({len(chosen)} other files)" if chosen else "")
        )
    return Source(path, kind, tuple(photos), len(chosen) - len(photos))


def is_compressed_tar(path: Path) -> bool:
    """Whether ``path`` is a tar that can only be read from its start on (.tar.gz and the like)."""
    if not path.is_file() or zipfile.is_zipfile(path) or not tarfile.is_tarfile(path):
        return False
    try:
        tarfile.open(path, "r:").close()
    except tarfile.ReadError:
        return True
    return False


def unpack_tar(path: Path, target: Path) -> None:
    """Decompress ``path`` into the plain tar ``target``."""
    openers: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
    with open(path, "rb") as file:
        opener = openers.get(file.read(2))
    if opener is None:
        raise UserError(f"{path} is compressed in a way that is not known here; unpack it and give the .tar")
    try:
        with opener(path, "rb") as packed, open(target, "wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as fault:
        raise UserError(f"{path} is damaged or cut: {fault}; get it again") from fault


class Reader:
    """Reads members of a source; each process makes its own."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._zip = zipfile.ZipFile(path) if kind == "zip" else None
        self._tar: IO[bytes] | None = open(path, "rb") if kind == "tar" else None  # noqa: SIM115 (closed below)

    def read(self, member: Member) -> bytes:
        """The photo's bytes. OSError, or an error of zipfile, when it cannot be read."""
        if self._zip:
            return self._zip.read(member.name)
        if not self._tar:
            return (self._path / member.name).read_bytes()
        self._tar.seek(member.offset)
        content = self._tar.read(member.bytes)
        if len(content) < member.bytes:
            raise OSError("the tar ends within this photo")
        return content

    def close(self) -> None:
        """Close the archive."""
        for archive in (self._zip, self._tar):
            if archive:
                archive.close()


def keys_of(names: Iterable[str]) -> dict[str, str]:
    """A WebDataset key for each name: no extension, and ``_`` for each ``/`` and ``.``.

    Names that would share a key (``a/b.jpg`` and ``a_b.png``) each get ``-`` and 8 hex digits of their
    name's SHA-256. UserError when even these are not unique.
    """
    plain = {name: _key(name) for name in names}
    shared: dict[str, int] = {}
    for key in plain.values():
        shared[key] = shared.get(key, 0) + 1
    keys = {name: key if shared[key] == 1 else f"{key}-{_digest(name)}" for name, key in plain.items()}
    if len(set(keys.values())) < len(keys):
        doubled = next(name for name, key in keys.items() if list(keys.values()).count(key) > 1)
        raise UserError(f"{doubled!r} and another photo would have the same key in the shards; rename it")
    return keys


def _key(name: str) -> str:
    stem = os.path.splitext(name)[0].encode(errors="replace").decode()
    return stem.replace("/", "_").replace(".", "_")


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]


def _is_photo(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.lower().endswith(PHOTO_EXTENSIONS) and not base.startswith(".")


def _list(path: Path) -> tuple[str, Iterator[Member]]:
    if path.is_dir():
        return "folder", _list_folder(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; SOURCE is a folder, .zip or .tar of photos")
    if zipfile.is_zipfile(path):
        return "zip", _list_zip(path)
    if tarfile.is_tarfile(path):
        return "tar", _list_tar(path)
    raise UserError(f"{path} is no folder, .zip or .tar of photos (or it is damaged)")


def _list_folder(path: Path) -> Iterator[Member]:
    for folder, folders, files in os.walk(path, onerror=_refuse_folder):
        folders.sort()
        for file in files:
            full = os.path.join(folder, file)
            try:
                status = os.stat(full)
            except FileNotFoundError:  # a link to nowhere: it is listed, and rejected when it is read
                status = os.lstat(full)
            yield Member(os.path.relpath(full, path).replace(os.sep, "/"), status.st_size, status.st_mtime_ns)


def _refuse_folder(fault: OSError) -> None:
    raise UserError(f"{fault.filename} cannot be listed: {fault.strerror}") from fault


def _list_zip(path: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as fault:
        raise UserError(f"{path} is damaged or cut: {fault}; get it again") from fault
    return (Member(entry.filename, entry.file_size, entry.CRC) for entry in entries if not entry.is_dir())


def _list_tar(path: Path) -> Iterator[Member]:
    for entry in tar_members(path):
        yield Member(entry.name.removeprefix("./"), entry.size, int(entry.mtime), entry.offset_data)
