"""Sources of photos: a folder, a .zip or a .tar, listed by name and read one photo at a time."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from glci_dist.data.filetype import kind_of, open_zip
from glci_dist.data.folders import list_folder, read_file
from glci_dist.data.members import Link, Member, SkippedEntry, follow_links, replaced_marked
from glci_dist.data.names import (
    PHOTO_EXTENSIONS,
    counted,
    extension,
    is_archive,
    is_hidden,
    is_photo,
    most_frequent,
    shown,
)
from glci_dist.data.pixels import MOST_BYTES, too_many_bytes
from glci_dist.data.tars import read_pieces, tar_entries
from glci_dist.data.zips import zip_entries
from glci_dist.errors import UserError

_SMALL_BYTES = 16 << 20
"""A larger file's head is checked before the rest is read: a file that is not a photo may be huge, or decompress to a
huge one."""
HEAD_BYTES = 64 << 10
"""First bytes of a file that identify every supported format."""


@dataclass(frozen=True)
class LeftOut:
    """The entries of a source that are left out, by reason."""

    hidden: list[str] = field(default_factory=list)
    """Photos that are hidden, or in folders that are hidden or machine-made."""
    no_photos: list[str] = field(default_factory=list)
    """Files that match ``include`` but do not have a photo's extension."""
    archives: list[str] = field(default_factory=list)
    """Archives, which may hold photos but are not opened."""
    not_included: list[str] = field(default_factory=list)
    """Photos that do not match ``include``."""
    notes: list[SkippedEntry] = field(default_factory=list)

    def lines(self, include: str, photos: int) -> list[str]:
        """Messages, a line for each reason, with examples; ``photos``: the number of those not left out."""
        messages: list[str] = []
        if self.not_included:
            messages.append(
                f"{len(self.not_included):,} of {photos + len(self.not_included):,} photos match no "
                f"--include {include!r} ({_extensions(self.not_included)}): {shown(self.not_included)}"
            )
        if self.hidden:
            messages.append(
                f"{counted(len(self.hidden), 'photo')} hidden, or in hidden or machine-made folders, left out: "
                f"{shown(self.hidden)}"
            )
        if self.no_photos:
            are = "is no photo" if len(self.no_photos) == 1 else "are no photos"
            messages.append(
                f"{counted(len(self.no_photos), 'file')} that {are} by extension left out "
                f"({_extensions(self.no_photos)}): {shown(self.no_photos)}"
            )
        if self.archives:
            messages.append(
                f"{counted(len(self.archives), 'archive')} in the source not looked into: {shown(self.archives)}; "
                "photos in them need a build with that archive as SOURCE"
            )
        for what in sorted({note.what for note in self.notes}):
            messages.append(f"{what}: {shown([note.name for note in self.notes if note.what == what])}")
        return messages


@dataclass(frozen=True)
class Source:
    """The photos of a source, sorted by name, so that a folder and its zip or tar give the same shards."""

    path: Path
    kind: str
    """``folder``, ``zip`` or ``tar``."""
    photos: tuple[Member, ...]
    left_out: LeftOut

    def fingerprint(self) -> str:
        """Hex digits that change when a photo is added, removed, renamed or changed."""
        digest = hashlib.sha256()
        for photo in self.photos:
            digest.update(f"{photo.name}\0{photo.bytes}\0{photo.stamp}\n".encode(errors="replace"))
        return digest.hexdigest()


def open_source(path: Path, *, include: str = "*") -> Source:
    """List the photos of ``path`` whose name matches ``include`` (a glob in which ``*`` matches ``/`` too).

    UserError if ``path`` is not a folder, zip or tar, is damaged, or has no photo that matches.
    """
    kind = "folder" if path.is_dir() else kind_of(path)
    if kind not in _LISTINGS:
        raise UserError(f"{path} is compressed with {kind}; unpack it and give the .tar")
    photos, left_out = _sort(_LISTINGS[kind](path), include)
    if not photos:
        matching = "" if include == "*" else f" that matches --include {include!r}"
        messages = "".join(f"; {line}" for line in left_out.lines(include, 0))
        raise UserError(f"{path} has no photo{matching}; photos end in {', '.join(PHOTO_EXTENSIONS)}{messages}")
    return Source(path, kind, tuple(sorted(photos, key=lambda photo: photo.name)), left_out)


class Reader:
    """Reads members of a source; each process needs its own."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._zip: zipfile.ZipFile | None = open_zip(path) if kind == "zip" else None
        # By offset, as a zip may have two entries of one name.
        self._entries = {entry.header_offset: entry for entry in self._zip.infolist()} if self._zip else {}
        self._tar: IO[bytes] | None = open(path, "rb") if kind == "tar" else None  # noqa: SIM115 (closed below)

    def read(self, member: Member, check_head: Callable[[bytes], None]) -> bytes:
        """The photo's bytes. Raises one of ``ZIP_FAULTS``, OSError among them, if it cannot be read.

        ``check_head`` is called with the first ``HEAD_BYTES`` of a large file before the rest is read, and may raise.
        """
        fault = member.fault or too_many_bytes(member.bytes)
        if fault:
            raise OSError(fault)
        if member.bytes > _SMALL_BYTES:
            check_head(self._read(member, HEAD_BYTES))
        return self._read(member, MOST_BYTES)

    def _read(self, member: Member, most: int) -> bytes:
        if self._zip:
            if member.offset not in self._entries:
                raise OSError("the zip has changed since it was listed")
            with self._zip.open(self._entries[member.offset]) as file:
                return file.read(most)
        if not self._tar:
            return read_file(self._path / member.name, most)
        return read_pieces(self._tar, member, most)

    def close(self) -> None:
        """Close the archive."""
        for archive in (self._zip, self._tar):
            if archive:
                archive.close()


def keys_of(names: Iterable[str]) -> dict[str, str]:
    """A WebDataset key for each name: without extension, with ``_`` for each ``/`` and ``.``.

    Names that would share a key (``a/b.jpg`` and ``a_b.png``) get ``-`` and 8 hex digits of their SHA-256 appended.
    UserError if these are not unique either.
    """
    plain = {name: _key(name) for name in names}
    shared = Counter(plain.values())
    keys = {name: key if shared[key] == 1 else f"{key}-{_digest(name)}" for name, key in plain.items()}
    unique = Counter(keys.values())
    if len(unique) < len(keys):
        doubled = next(name for name, key in keys.items() if unique[key] > 1)
        raise UserError(f"{doubled!r} and another photo would have the same key in the shards; rename it")
    return keys


def _key(name: str) -> str:
    stem = os.path.splitext(name)[0].encode(errors="replace").decode()
    return stem.replace("/", "_").replace(".", "_")


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]


def _sort(entries: Iterable[Member | SkippedEntry], include: str) -> tuple[list[Member], LeftOut]:
    """The photos that match ``include``, and the other entries by reason."""
    photos: list[Member] = []
    out = LeftOut()
    for entry in entries:
        name = entry.name
        hidden = is_hidden(name.rstrip("/"))
        asked = fnmatch.fnmatchcase(name, include)
        if isinstance(entry, SkippedEntry):
            if not hidden:
                out.notes.append(entry)
        elif name.endswith("/"):  # a folder that cannot be listed: it may hold photos
            if not hidden:
                photos.append(entry)
        elif is_photo(name):
            if not hidden:
                photos.append(entry) if asked else out.not_included.append(name)
            elif asked:
                out.hidden.append(name)
        elif is_archive(name) and not hidden:
            out.archives.append(name)
        elif entry.fault.startswith("a link") and not hidden:  # its target may be a folder that is missing now
            out.notes.append(SkippedEntry(name, entry.fault))
        elif asked:
            out.no_photos.append(name)
    return photos, out


def _list_archive(entries: Iterable[Member | Link]) -> list[Member | SkippedEntry]:
    listed = [
        # As `tar -C photos .` writes names.
        replace(entry, name=entry.name.removeprefix("./")) if entry.name.startswith("./") else entry
        for entry in follow_links(entries)
    ]
    members = replaced_marked(entry for entry in listed if isinstance(entry, Member))
    return [*members, *(entry for entry in listed if isinstance(entry, SkippedEntry))]


_LISTINGS: dict[str, Callable[[Path], Iterable[Member | SkippedEntry]]] = {
    "folder": list_folder,
    "zip": lambda path: _list_archive(zip_entries(path)),
    "tar": lambda path: _list_archive(tar_entries(path)),
}


def _extensions(names: list[str]) -> str:
    return most_frequent(Counter(map(extension, names)), "{1:,} {0}")
