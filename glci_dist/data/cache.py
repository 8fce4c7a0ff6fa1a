"""The node's cache of remote shards: a folder that all loader processes of a node share.

A shard is one file there, its **entry**. It is downloaded to ``<entry>.part`` and renamed once its checksum is
verified, so an entry is always complete. Both are guarded by ``flock``, which the kernel releases however a process
ends:

- the process that downloads holds an exclusive lock on ``.part``; others wait for that lock and then find the entry;
- a reader holds a shared lock on the entry; removing it needs an exclusive one, which is not waited for.

A verified entry gets a **stamp**: a modification time derived from its name. A later write changes that time, and the
entry is verified again before it is used. Its access time is that of its last use.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from glci_dist.config import CacheConfig
from glci_dist.data.location import check_location
from glci_dist.data.remote import Stream, retrying
from glci_dist.data.unexpected_content import HEAD, describe
from glci_dist.errors import UserError
from glci_dist.urls import same_url, without_secrets

log = logging.getLogger(__name__)

_GIB = 2**30
_DOWNLOADS = 3
_NO_RIGHT = (errno.EROFS, errno.EACCES, errno.EPERM)
# Only files with such names are ever removed, whatever folder the user gives.
_OURS = re.compile(r".+-[0-9a-f]{32}(\.part)?")


class ShardCache:
    """Local copies of remote files, at most ``config.max_gib`` of them. Picklable."""

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        self.folder = Path(config.dir).expanduser()
        self._told_full = False
        self._verified: dict[str, tuple[int, int, int]] = {}

    def fetch(self, url: str, *, bytes: int | None, sha256: str) -> FileIO:
        """The file of ``url`` with this checksum, opened for reading; downloaded unless it is cached.

        No process removes it from the cache until it is closed. ``bytes`` is its size; None: unknown (for small files:
        their downloads are restarted rather than resumed).

        UserError if the url is refused, missing or unreadable after the last retry, if it has another size or
        checksum, and if the folder cannot hold it.
        """
        check_location(url)
        entry = self.folder / _entry_name(url, sha256)
        with self._os_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
        file = self._open_entry(entry, bytes, sha256)
        if file is not None:
            return file
        for _ in range(_DOWNLOADS):
            self._download(entry, url, bytes, sha256)
            file = self._open_entry(entry, bytes, sha256)
            if file is not None:
                # Each download makes room only for itself, and others may have ended meanwhile.
                self._make_room(0)
                return file
        raise UserError(
            f"{without_secrets(url)} was fetched {_DOWNLOADS} times, but the shard cache {self.folder} does not "
            "keep it: its disk may be damaged, or others write there; set data.cache.dir to another folder"
        )

    def check(self, files: Sequence[tuple[str, str]]) -> None:
        """Raise UserError unless all of ``files`` (url and checksum) can be fetched.

        A read-only folder must hold all of them, as the run would end at the first one that is missing.
        """
        with self._os_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            if os.access(self.folder, os.W_OK | os.X_OK):
                return
            there = set(os.listdir(self.folder))
        missing = [url for url, sha256 in files if _entry_name(url, sha256) not in there]
        if missing:
            raise UserError(
                f"the shard cache {self.folder} cannot be written, and lacks {len(missing)} of {len(files)} files (the "
                f"first: {without_secrets(missing[0])}): set data.cache.dir to a writable folder on a local disk"
            )

    def is_intact(self, file: FileIO, url: str, *, bytes: int, sha256: str) -> bool:
        """Whether an open entry has its checksum; a damaged one is removed from the cache, with a warning."""
        entry = self.folder / _entry_name(url, sha256)
        with self._os_errors():
            mismatch = _mismatch(file, bytes, sha256)
            if mismatch is None:
                return True
            self._drop(file, entry, mismatch)
        return False

    def _drop(self, file: FileIO, entry: Path, mismatch: str) -> None:
        # Only the file that was read: another process may have replaced it.
        if _is_at(file, entry):
            log.warning("%s was damaged in the cache (%s): it is fetched anew", entry, mismatch)
            entry.unlink(missing_ok=True)

    def _open_entry(self, entry: Path, size: int | None, sha256: str) -> FileIO | None:
        """The entry, opened under a shared lock and verified; None if there is none or it is damaged."""
        with self._os_errors():
            try:
                file = FileIO(entry)
            except FileNotFoundError:
                return None
            fcntl.flock(file, fcntl.LOCK_SH)
            # It may have been removed between the two lines above.
            removed = os.fstat(file.fileno()).st_nlink == 0
            known = size is not None and self._is_known(file, entry)
            mismatch = None if removed else _mismatch(file, size, None if known else sha256)
            if removed or mismatch:
                if mismatch:
                    self._drop(file, entry, mismatch)
                file.close()
                return None
            file.seek(0)
            _stamp(file, entry)
            self._verified[entry.name] = _identity(file)
            return file

    def _is_known(self, file: FileIO, entry: Path) -> bool:
        """Whether the entry was verified since it was last written, by any process (stamp) or by this one."""
        # Another user's entry, or one on a read-only mount, cannot be stamped.
        found = _identity(file)
        return found[2] == _stamp_of(entry) or self._verified.get(entry.name) == found

    def _download(self, entry: Path, url: str, size: int | None, sha256: str) -> None:
        """Return when the entry exists, downloaded by this process or by another."""
        part_path = entry.with_name(entry.name + ".part")
        with self._locked_part(part_path) as part:
            if entry.exists():
                part_path.unlink()
                return
            self._make_room(size or 0, url=url)
            # Resumes a part that a killed process or a lost connection left.
            self._receive(part, part_path, url, size, sha256)
            with self._os_errors():
                os.fsync(part.fileno())
                # After the fsync: the stamp must not survive a power loss without the content.
                _stamp(part, entry)
                part_path.rename(entry)

    @contextmanager
    def _locked_part(self, path: Path) -> Iterator[FileIO]:
        """``path``, created if missing, under an exclusive lock (blocking)."""
        while True:
            with self._os_errors():
                part = FileIO(path, "a+")
                fcntl.flock(part, fcntl.LOCK_EX)
            with part:
                # The previous holder of the lock may have renamed or removed the file.
                if _is_at(part, path):
                    yield part
                    return

    def _receive(self, part: FileIO, part_path: Path, url: str, size: int | None, sha256: str) -> None:
        # Twice, as a part that was left by a crash of the machine may be damaged.
        for _ in range(2):
            retrying(url, self.config, lambda: self._append(part, part_path, url, size))
            with self._os_errors():
                mismatch = _mismatch(part, size, sha256)
                if mismatch is None:
                    return
                part.seek(0)
                head = part.read(HEAD) or b""
                part.truncate(0)
        kind = describe(head) if head[257:262] != b"ustar" else None
        part_path.unlink()
        if kind and not kind.startswith("a binary") and not kind.startswith("a numpy"):
            raise UserError(
                f"{without_secrets(url)} does not match its index: {mismatch}; the answer is {kind}; check the "
                "url, the credentials (~/.netrc) and the proxy (http_proxy)"
            )
        raise UserError(
            f"{without_secrets(url)} does not match its index: {mismatch}; "
            "run glci shards verify where the shards are kept, or make the index anew (glci shards index)"
        )

    def _append(self, part: FileIO, part_path: Path, url: str, size: int | None) -> None:
        """Download the rest of ``part``."""
        start = os.fstat(part.fileno()).st_size
        if start == size:
            return
        resumable = size is not None and start < size
        stream = Stream(url, start=start if resumable else 0, timeout_s=self.config.timeout_s)
        received = stream.start
        with self._os_errors():
            part.truncate(received)
        for chunk in stream:
            try:
                _write_all(part, chunk)
            except OSError as fault:
                part_path.unlink()
                raise self._unusable(fault) from fault
            received += len(chunk)
            if size is not None and received > size:
                return

    def _make_room(self, needed: int, url: str = "") -> None:
        """Remove least recently used entries, none in use, until ``needed`` more bytes fit."""
        bound = int(self.config.max_gib * _GIB)
        if needed > bound:
            raise UserError(
                f"{without_secrets(url)} has {needed / _GIB:.3g} GiB, more than the whole cache {self.folder} may hold "
                f"({self.config.max_gib:g} GiB); raise data.cache.max_gib"
            )
        with self._os_errors():
            entries = self._entries()
            total = sum(size for _, _, _, size in entries) + needed
            for _, _, path, size in entries:
                if total <= bound:
                    return
                if _remove(path):
                    total -= size
        if total > bound and not self._told_full:
            self._told_full = True
            log.warning(
                "the shards in use take %.3g GiB in %s, more than data.cache.max_gib=%g: none can be removed",
                total / _GIB,
                self.folder,
                self.config.max_gib,
            )

    def _entries(self) -> list[tuple[bool, int, Path, int]]:
        """Each file of the cache as (is an entry, last use in ns, path, bytes), sorted: unfinished parts first."""
        entries = []
        for item in os.scandir(self.folder):
            # A file may have been removed since it was listed.
            with suppress(FileNotFoundError):
                if _OURS.fullmatch(item.name):
                    status = item.stat()
                    whole = not item.name.endswith(".part")
                    used = status.st_atime_ns if whole else status.st_mtime_ns
                    entries.append((whole, used, Path(item.path), status.st_size))
        return sorted(entries)

    @contextmanager
    def _os_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as fault:
            raise self._unusable(fault) from fault

    def _unusable(self, fault: OSError) -> UserError:
        # Without write permission, making room is no way out.
        room = "" if fault.errno in _NO_RIGHT else "make room there, lower data.cache.max_gib, or "
        return UserError(
            f"the shard cache {self.folder} cannot be used: {fault.strerror}; {room}set data.cache.dir to a writable "
            "folder on a local disk"
        )


def _entry_name(url: str, sha256: str) -> str:
    # Credentials in the url must neither change the entry nor be visible in its name.
    url = same_url(url)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", url.partition("://")[2])[-100:]
    return f"{readable}-{hashlib.sha256(f'{url} {sha256}'.encode()).hexdigest()[:32]}"


def _stamp_of(entry: Path) -> int:
    """A time in 2001 to 2004, in ns, which no clock shows now; whole even seconds, which any file system can store."""
    number = int(hashlib.sha256(entry.name.encode()).hexdigest()[:12], 16)
    return (10**9 + 2 * (number % (5 * 10**7))) * 10**9


def _stamp(file: FileIO, entry: Path) -> None:
    """Mark the file as verified and used now; has no effect on another user's file or a read-only disk."""
    with suppress(OSError):
        os.utime(file.fileno(), ns=(time.time_ns(), _stamp_of(entry)))


def _identity(file: FileIO) -> tuple[int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_at(file: FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _mismatch(file: FileIO, size: int | None, sha256: str | None) -> str | None:
    """How ``file`` differs from the given size and checksum (None: not compared); None if it does not."""
    found = os.fstat(file.fileno()).st_size
    if size is not None and found != size:
        return f"it has {found}{' or more' if found > size else ''} bytes, the index says {size}"
    if sha256 is None:
        return None
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == sha256 else f"its sha256 is {digest[:12]}..., the index says {sha256[:12]}..."


def _remove(path: Path) -> bool:
    """Remove ``path`` unless a process uses it or it is another user's; returns whether it is gone."""
    # Open for writing, as an exclusive lock asks for on NFS.
    try:
        with suppress(FileNotFoundError), FileIO(path, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _write_all(file: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]
