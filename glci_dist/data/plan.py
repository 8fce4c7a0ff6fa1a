"""What stands in the folder of an unfinished build: the plan it follows, and the shards that are done.

``build.json`` is the plan, written first and kept. ``build.jsonl`` has a line for each finished
shard and is locked while a build runs; it goes when index.json, written last, is there.
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from glci_dist.data.index import INDEX_NAME, Shard, write_whole
from glci_dist.errors import UserError

_FORMAT = "glci-build-1"
_PLAN_NAME = "build.json"
_JOURNAL_NAME = "build.jsonl"


@dataclass(frozen=True)
class BuildOptions:
    """What decides the bytes of the shards, besides the photos."""

    include: str = "*"
    """Glob that a photo's name must match; ``*`` matches ``/`` too."""
    size: int | None = None
    """Photos with a longer short edge are scaled down to it, px; None: none is."""
    quality: int = 95
    """Of photos that must be encoded anew, 1 to 100."""
    samples: int = 1000
    """Photos of a shard."""
    seed: int = 0
    """Of the shuffle."""
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
class Plan:
    """A build: of what, and how."""

    source: str
    fingerprint: str
    """Of the source's photos (``Source.fingerprint``)."""
    photos: int
    options: BuildOptions


@dataclass(frozen=True)
class Finished:
    """What became of one shard's photos."""

    name: str
    shard: Shard | None
    """None when every photo was rejected, and there is no such shard."""
    rejects: tuple[tuple[str, str], ...]
    """Name and reason of each photo that could not be decoded."""


def check_folder(folder: Path) -> None:
    """UserError when ``folder`` holds shards or an index that no build wrote."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; DEST is a folder for the shards")
    if (folder / _PLAN_NAME).exists() or not folder.exists():
        return
    foreign = sorted(path.name for path in folder.iterdir() if path.suffix == ".tar" or path.name == INDEX_NAME)
    if foreign:
        raise UserError(
            f"{folder} holds {foreign[0]}, which `glci shards build` did not write; choose another folder "
            "(or, for an index of these tars, `glci shards index`)"
        )


def is_complete(folder: Path) -> bool:
    """Whether a build in ``folder`` has ended."""
    return (folder / INDEX_NAME).exists()


def adopt_plan(folder: Path, plan: Plan) -> None:
    """Write the plan into ``folder``, or find it there; UserError when another plan stands there."""
    path = folder / _PLAN_NAME
    if not path.exists():
        write_whole(path, (json.dumps({"format": _FORMAT, **asdict(plan)}, indent=1) + "\n").encode())
        return
    state = "a finished" if is_complete(folder) else "an unfinished"
    way_out = "give the same source and options, or another folder, or remove this one"
    standing = _read_plan(path)
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


class BuildJournal:
    """The finished shards of a build in progress; only one process at a time can open it.

    UserError when another build holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _JOURNAL_NAME
        self._file: TextIO = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 (closed by close)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            self._file.close()
            raise UserError(f"another build is writing to {folder}; wait for it, or stop it") from fault
        self.finished = self._read()

    def add(self, finished: Finished) -> None:
        """Record one more shard."""
        self._file.write(json.dumps(asdict(finished)) + "\n")
        self._file.flush()

    def remove(self) -> None:
        """Delete the journal of a build that is complete."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let other builds in."""
        self._file.close()

    def _read(self) -> dict[str, Finished]:
        self._file.seek(0)
        finished: dict[str, Finished] = {}
        whole = 0
        for line in self._file:
            if not line.endswith("\n"):  # the build was killed within this line
                break
            record = json.loads(line)
            shard = Shard(**record["shard"]) if record["shard"] else None
            rejects = tuple((name, reason) for name, reason in record["rejects"])
            finished[record["name"]] = Finished(record["name"], shard, rejects)
            whole += len(line.encode())
        self._file.truncate(whole)
        return finished


def _read_plan(path: Path) -> Plan:
    try:
        document = json.loads(path.read_text())
        if document.pop("format") != _FORMAT:
            raise ValueError("another format")
        options = BuildOptions(**document.pop("options"))
        return Plan(options=options, **document)
    except (ValueError, TypeError, KeyError, AttributeError) as fault:
        raise UserError(f"{path} is no plan of a build ({fault}); choose another folder, or remove this one") from fault
