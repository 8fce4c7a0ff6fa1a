"""Attempts: the numbered leases of a run's folder, and the fence between an older and a newer one.

The scheduler may restart a run while a cut-off node still runs the last attempt of it. So each
attempt makes ``attempts/0004/``, and the newest number owns the run. All that an attempt may put
into the run goes through its own folder, *by path*:

- a checkpoint is written into it and renamed out of it; one that is removed is renamed into it first;
- the journal is opened through a hard link in it.

A newer attempt first renames the older ones' folders to ``0003.over``. From then on each of those
operations of the older attempt finds no such path, however long it was stopped between two
instructions. A journal file that it had open already is none any more: the newer attempt copied it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glci_dist.data.index import write_whole
from glci_dist.errors import Superseded

_NUMBERED = re.compile(r"(\d{4,})(\.over)?")
_LEASE, _ALIVE = "lease.json", "alive.json"


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, by its number; every rank holds one."""

    run: Path
    number: int

    @property
    def folder(self) -> Path:
        """Where it stands while this attempt owns the run."""
        return self.run / "attempts" / f"{self.number:04d}"

    @property
    def journal(self) -> Path:
        """The attempt's way to the run's journal."""
        return self.folder / "journal.jsonl"

    @property
    def alive(self) -> Path:
        """What the attempt last said of itself, see ``Pulse`` in ``ledger.py``."""
        return self.folder / _ALIVE

    def is_over(self) -> bool:
        """Whether a newer attempt took the run over."""
        return not self.folder.exists()

    def superseded(self) -> Superseded:
        """What to end with when it did."""
        newest = max(numbers(self.run), default=self.number)
        by = lease(self.run, newest)
        where = f" (process {by['pid']} on {by['host']})" if by else ""
        return Superseded(
            f"attempt {self.number} of {self.run} ends: attempt {newest}{where} owns the run now; "
            "nothing of this attempt was written since"
        )

    @contextmanager
    def fenced(self) -> Iterator[None]:
        """Turn a missing path of this attempt's into ``Superseded``, if a newer attempt is the reason."""
        try:
            yield
        except FileNotFoundError:
            if self.is_over():
                raise self.superseded() from None
            raise


def begin(run: Path, *, ranks: int) -> Attempt:
    """Take the next lease of ``run`` and fence the older attempts off; one rank calls it.

    Raises ``Superseded`` if a still newer attempt began meanwhile, ``OSError`` if nothing can be written.
    """
    (run / "attempts").mkdir(parents=True, exist_ok=True)
    attempt = _take_number(run)
    entry = {
        "attempt": attempt.number,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": round(time.time(), 3),
        "ranks": ranks,
    }
    with attempt.fenced():
        write_whole(attempt.folder / _LEASE, json.dumps(entry).encode())
        for number in numbers(run):
            if number < attempt.number:
                _fence_off(Attempt(run, number))
        _take_journal(attempt)
    return attempt


def numbers(run: Path) -> list[int]:
    """The numbers of all attempts at ``run``, in order."""
    if not (run / "attempts").is_dir():
        return []
    found = (_NUMBERED.fullmatch(path.name) for path in (run / "attempts").iterdir())
    return sorted(int(match[1]) for match in found if match)


def lease(run: Path, number: int) -> dict[str, Any]:
    """Host, process, time and ranks of an attempt; empty where it died before it said so."""
    return _read(run, number, _LEASE)


def last_sign(run: Path, number: int) -> dict[str, Any]:
    """What an attempt last said of itself; empty where it never did."""
    return _read(run, number, _ALIVE)


def _read(run: Path, number: int, name: str) -> dict[str, Any]:
    for folder in (f"{number:04d}", f"{number:04d}.over"):
        try:
            found = json.loads((run / "attempts" / folder / name).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _take_number(run: Path) -> Attempt:
    while True:
        attempt = Attempt(run, max(numbers(run), default=0) + 1)
        try:
            # Making a folder is what two processes cannot both do.
            attempt.folder.mkdir()
        except FileExistsError:
            continue
        return attempt


def _fence_off(older: Attempt) -> None:
    over = older.folder.with_name(f"{older.folder.name}.over")
    try:
        os.rename(older.folder, over)
    except FileNotFoundError:
        if not over.exists():
            raise
    # What it was writing or removing. It is in no one's way, but a network file system may still let
    # a client that has the old folder's handle rename what is in it: then there is nothing to rename.
    for left in over.glob("*.*ing"):
        shutil.rmtree(left, ignore_errors=True)


def _take_journal(attempt: Attempt) -> None:
    """Give the run a new journal file with what the old one held, opened by no older attempt."""
    journal, aside = attempt.run / "journal.jsonl", attempt.folder / "journal.new"
    held = journal.read_bytes() if journal.exists() else b""
    if held and not held.endswith(b"\n"):
        held += b"\n"
    with aside.open("xb") as file:
        file.write(held)
        file.flush()
        os.fsync(file.fileno())
    os.link(aside, attempt.journal)
    os.rename(aside, journal)
