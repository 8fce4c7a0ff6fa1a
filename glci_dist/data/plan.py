"""The state of a build in its folder: the plan, and the journal of finished shards.

``build.json`` is the plan, written first and kept. ``build.jsonl`` has a line for each finished shard and is locked
while a build runs; it is removed once index.json, written last, exists.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from glci_dist.data.foreign import refuse_foreign_index
from glci_dist.data.index import INDEX_NAME, Shard, table_name, write_whole
from glci_dist.errors import UserError

_FORMAT = "glci-build-1"
_PLAN_NAME = "build.json"
_JOURNAL_NAME = "build.jsonl"
REJECTS_NAME = "rejects.jsonl"
UNPACKED_NAME = "source.tar.tmp"
# Temporary files that a killed build leaves behind, named with the process id.
_ASIDE = re.compile(
    r"(shard-\d{6,}\.tar|shard-\d{6,}\.tar\.samples\.npy|index\.json|build\.json|rejects\.jsonl)\.\d+\.tmp"
)


@dataclass(frozen=True)
class BuildOptions:
    """The options that, with the photos, determine the shards' bytes."""

    include: str = "*"
    """Glob that a photo's name must match; ``*`` matches ``/`` too."""
    size: int | None = None
    """Photos with a longer short edge are scaled down to it, px; None: no scaling."""
    quality: int = 95
    """JPEG quality of re-encoded photos, 1 to 100."""
    samples: int = 1000
    """Photos per shard."""
    seed: int = 0
    """Seed of the shuffle."""
    shuffle: bool = True

    def check(self) -> None:
        """UserError for a value out of range."""
        if self.samples < 1:
            raise UserError(f"--samples {self.samples}: a shard holds at least 1 photo")
        if self.size is not None and self.size < 1:
            raise UserError(f"--size {self.size}: the short edge is at least 1 px")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality} is not in 1 to 100")


@dataclass(frozen=True)
class BuildInputs:
    """A build's source and options."""

    source: str
    fingerprint: str
    """Of the source's photos (``Source.fingerprint``)."""
    photos: int
    options: BuildOptions


@dataclass(frozen=True)
class FinishedShard:
    """The outcome of one shard's task."""

    name: str
    shard: Shard | None
    """None if every photo was rejected, so that there is no shard."""
    rejects: tuple[tuple[str, str], ...]
    """Name and reason of each photo that could not be decoded."""
    several: tuple[str, ...] = ()
    """Names of photos with several pictures, of which the first was used."""


def check_folder(folder: Path) -> None:
    """UserError if ``folder`` holds files of other programs that a build would overwrite, or tars of others."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; DEST is a folder for the shards")
    if has_plan(folder):
        read_plan(folder)
        refuse_foreign_index(folder)
        return
    if not folder.exists():
        return
    foreign = sorted(path.name for path in folder.iterdir() if _would_be_lost(path))
    if foreign:
        raise UserError(
            f"{folder} holds {foreign[0]}, which `glci shards build` did not write; choose another folder "
            "(or, for an index of these tars, `glci shards index`)"
        )


def has_plan(folder: Path) -> bool:
    """Whether a build has begun in ``folder``."""
    return (folder / _PLAN_NAME).exists()


def is_complete(folder: Path) -> bool:
    """Whether the build in ``folder`` is complete."""
    return (folder / INDEX_NAME).exists()


def adopt_plan(folder: Path, plan: BuildInputs) -> None:
    """Write the plan into ``folder``, unless it is there already; UserError if another plan is."""
    path = folder / _PLAN_NAME
    if not path.exists():
        write_whole(path, (json.dumps({"format": _FORMAT, **asdict(plan)}, indent=1) + "\n").encode())
        return
    state = "a finished" if is_complete(folder) else "an unfinished"
    way_out = "give the same source and options, or another folder, or remove this one"
    standing = read_plan(folder)
    differences = [
        f"{name} {old!r} (asked: {new!r})"
        for name, old in asdict(standing.options).items()
        if old != (new := getattr(plan.options, name))
    ]
    if differences:
        raise UserError(f"{folder} holds {state} build with {', '.join(differences)}; {way_out}")
    if standing.fingerprint != plan.fingerprint:
        raise UserError(
            f"{folder} holds {state} build of {standing.photos} photos from {standing.source}, and those of "
            f"{plan.source} ({plan.photos}) are others or have changed since; {way_out}"
        )


def remove_leftovers(folder: Path, *, but: Path) -> None:
    """Remove a killed build's temporary files from ``folder``, except ``but``; the journal must be locked."""
    for path in folder.iterdir():
        if (_ASIDE.fullmatch(path.name) or path.name == UNPACKED_NAME) and path != but:
            path.unlink(missing_ok=True)


def read_plan(folder: Path) -> BuildInputs:
    """The plan in ``folder``. UserError if its file is not a plan."""
    path = folder / _PLAN_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("format") != _FORMAT:
            raise ValueError("another format")
        options = BuildOptions(**document.pop("options"))
        return BuildInputs(options=options, **document)
    except (ValueError, TypeError, KeyError, AttributeError) as fault:
        raise UserError(f"{path} is no plan of a build ({fault}); choose another folder, or remove this one") from fault


class BuildJournal:
    """The finished shards of a build in progress, locked by this process; UserError if another build has the lock."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _JOURNAL_NAME
        self._file = _open_locked(self._path)
        self.finished = self._read()

    def __enter__(self) -> BuildJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, finished: FinishedShard) -> None:
        """Record one more shard."""
        self._file.write(json.dumps(asdict(finished)) + "\n")
        self._file.flush()

    def remove(self) -> None:
        """Delete the journal of a build that is complete."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def _read(self) -> dict[str, FinishedShard]:
        self._file.seek(0)
        finished: dict[str, FinishedShard] = {}
        whole = 0
        for line in self._file:
            if not line.endswith("\n"):  # the build was killed while it wrote this line
                break
            record = json.loads(line)
            shard = Shard(**record["shard"]) if record["shard"] else None
            rejects = tuple((name, reason) for name, reason in record["rejects"])
            finished[record["name"]] = FinishedShard(record["name"], shard, rejects, tuple(record.get("several", ())))
            whole += len(line.encode())
        if os.fstat(self._file.fileno()).st_size > whole:
            self._file.truncate(whole)
        return finished


def _would_be_lost(path: Path) -> bool:
    if path.name == _JOURNAL_NAME:  # empty in a build that has just begun
        return path.stat().st_size > 0
    table = path.name.endswith(table_name(".tar")) and path.is_file()
    return table or path.suffix == ".tar" or path.name in (INDEX_NAME, REJECTS_NAME)


def _open_locked(path: Path) -> TextIO:
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed by close)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            file.close()
            raise UserError(f"another build is writing to {path.parent}; wait for it, or stop it") from fault
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
        # The previous holder removed the file meanwhile: the next build would lock another one.
        file.close()
