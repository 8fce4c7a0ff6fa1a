"""Lists the files below a folder; follows each linked folder once, and reports entries that cannot be read."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from pathlib import Path

from glci_dist.data.members import Member, SkippedEntry
from glci_dist.data.names import is_hidden
from glci_dist.errors import UserError

_Linked = list[tuple[str, str, os.stat_result]]
"""Name below the source, path and status of linked folders."""
_Identity = tuple[bool, int, int]
_WHAT = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def list_folder(path: Path) -> Iterator[Member | SkippedEntry]:
    """Every file below ``path``, also in linked folders; each folder is listed once, before links to it.

    UserError if ``path`` itself cannot be listed; a folder below it that cannot be listed is a ``Member`` with a fault.
    """
    root = os.stat(path)
    above = {_identity("", os.stat(parent)) for parent in path.resolve().parents}
    seen: set[_Identity] = set()
    linked = yield from _walk(path, "", root, seen)
    while linked:
        further: _Linked = []
        for name, full, status in linked:
            if _identity(name, status) in above:
                yield SkippedEntry(name, "a link to a folder that the source lies in, not followed")
            elif _identity(name, status) in seen:
                yield SkippedEntry(name, "a link to a folder that is listed already")
            else:
                yield SkippedEntry(name, "a linked folder, followed")
                further += yield from _walk(full, f"{name}/", status, seen)
        linked = further


def read_file(path: Path, most: int) -> bytes:
    """The first ``most`` bytes of a regular file; OSError if it is not one (a pipe is not waited for)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fault = irregular(os.fstat(descriptor).st_mode)
    if fault:
        os.close(descriptor)
        raise OSError(fault)
    with open(descriptor, "rb") as file:
        return file.read(most)


def irregular(mode: int) -> str:
    """Why an entry with this ``st_mode`` is not a file; empty for a file, and if the mode has no file type."""
    kind = stat.S_IFMT(mode)
    return "" if kind in (0, stat.S_IFREG) else f"{_WHAT.get(kind, 'something else')}, not a file"


def _walk(
    full: str | Path, prefix: str, status: os.stat_result, seen: set[_Identity]
) -> Generator[Member | SkippedEntry, None, _Linked]:
    """Yields the files below one folder without following linked folders; returns those."""
    linked: _Linked = []
    waiting = [(os.fspath(full), prefix, status)]
    while waiting:
        folder, below, status = waiting.pop()
        if _identity(below.rstrip("/"), status) in seen:  # a folder mounted at two places
            continue
        seen.add(_identity(below.rstrip("/"), status))
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as fault:
            if not below:
                raise UserError(f"{folder} cannot be listed: {fault.strerror}") from fault
            yield Member(below, 0, 0, fault=f"a folder that cannot be listed: {fault.strerror}")
            continue
        for entry in entries:
            name = below + entry.name
            try:
                status = entry.stat()
            except OSError as fault:  # a link to nowhere or to itself
                yield _unreadable(name, entry, fault)
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield Member(name, status.st_size, status.st_mtime_ns, fault=irregular(status.st_mode))
            elif entry.is_symlink() and not is_hidden(name):
                linked.append((name, entry.path, status))
            elif not entry.is_symlink():
                waiting.append((entry.path, f"{name}/", status))
    return linked


def _unreadable(name: str, entry: os.DirEntry[str], fault: OSError) -> Member:
    if entry.is_dir(follow_symlinks=False):  # known from the listing
        return Member(f"{name}/", 0, 0, fault=f"a folder that cannot be listed: {fault.strerror}")
    what = "a link to nowhere: " if entry.is_symlink() else ""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:  # removed since it was listed
        return Member(name, 0, 0, fault=f"{what}{fault.strerror}")
    return Member(name, status.st_size, status.st_mtime_ns, fault=f"{what}{fault.strerror}")


def _identity(name: str, status: os.stat_result) -> _Identity:
    # A hidden folder differs from a visible link to it: its photos are left out, the link's are not.
    return is_hidden(name), status.st_dev, status.st_ino
