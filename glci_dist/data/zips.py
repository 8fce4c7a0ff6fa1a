"""Lists the entries of a zip: files with normalised names, links, and why other entries cannot be read."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path

from glci_dist.data.filetype import open_zip
from glci_dist.data.folders import irregular
from glci_dist.data.members import Link, Member

# Errors of reading an entry of a bad zip; RuntimeError for a password or an unknown compression.
ZIP_FAULTS = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, LZMAError)
_UNIX = 3
_ENCRYPTED = 1
_LONGEST_TARGET = 4096


def zip_entries(path: Path) -> Iterator[Member | Link]:
    """The files and links of a zip, in order; UserError if it is damaged."""
    with open_zip(path) as archive:
        entries = archive.infolist()
        from_windows = not any("/" in entry.filename for entry in entries)
        for entry in entries:
            # Some Windows programs write backslashes, against the format.
            windows = from_windows or entry.create_system != _UNIX
            name = entry.filename.replace("\\", "/") if windows else entry.filename
            if name.endswith("/"):
                continue
            mode = entry.external_attr >> 16 if entry.create_system == _UNIX else 0
            if stat.S_ISLNK(mode):
                yield _link(archive, entry, name)
            else:
                fault = irregular(mode) or _encrypted(entry)
                yield Member(name, entry.file_size, entry.CRC, entry.header_offset, fault=fault)


def _link(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Member | Link:
    if entry.file_size > _LONGEST_TARGET:
        return Member(name, entry.file_size, entry.CRC, fault="a link with a target too long to be one")
    if fault := _encrypted(entry):
        return Member(name, entry.file_size, entry.CRC, fault=f"a link that is {fault}")
    try:
        target = archive.read(entry).decode(errors="surrogateescape")
    except ZIP_FAULTS as fault:
        return Member(name, entry.file_size, entry.CRC, fault=f"a link that cannot be read: {fault}")
    return Link(name, target, hard=False, stamp=entry.CRC)


def _encrypted(entry: zipfile.ZipInfo) -> str:
    """Why an encrypted entry cannot be read; empty for any other."""
    return "encrypted: unpack the zip with its password and give the folder" if entry.flag_bits & _ENCRYPTED else ""
