"""Attempts: the numbered leases of a run's folder, and the fence between an older and a newer one.

The scheduler may restart a run while a cut-off node still runs the last attempt of it. So each
attempt takes a number by the one lease file ``attempts/0004.json``, which stays for good, and the
newest number owns the run. All that an attempt may put into the run goes through its own folder
``attempts/0004/``, *by path*:

- a checkpoint is written into it and renamed out of it; one that is removed or set aside is renamed into it;
- the configuration is written in it and renamed out of it;
- the journal is opened through a hard link in it.

A newer attempt first renames the older ones' folders to ``0003.over``. From then on each of those
operations of the older attempt finds no such path, however long it was stopped between two
instructions. A journal file that it had open already is none any more: the newer attempt copied it.
An attempt that is stopped before it made its folder finds the newer lease afterwards, and ends.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glci_dist.errors import Superseded

_NUMBERED = re.compile(r"(\d{4,})(\.over|\.json)?")


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
        return self.folder / "alive.json"

    @property
    def over(self) -> Path:
        """Where its folder lies once a newer attempt took the run over."""
        return self.folder.with_name(f"{self.folder.name}.over")

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


def begin(run: Path, *, ranks: int, facts: Mapping[str, Any] | None = None) -> Attempt:
    """Take the next lease of ``run`` and fence the older attempts off; one rank calls it.

    ``facts`` go into the lease too. Raises ``Superseded`` if a still newer attempt began meanwhile, ``OSError`` if
    nothing can be written.
    """
    (run / "attempts").mkdir(parents=True, exist_ok=True)
    attempt = _take_number(run, {"host": socket.gethostname(), "pid": os.getpid(), "ranks": ranks, **(facts or {})})
    # Whoever has a newer lease fences off what folders it finds; so the folder comes first, then the look.
    attempt.folder.mkdir()
    if numbers(run)[-1] > attempt.number:
        with suppress(OSError):
            attempt.folder.rmdir()
        raise attempt.superseded()
    with attempt.fenced():
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
    return sorted({int(match[1]) for match in found if match})


def lease(run: Path, number: int) -> dict[str, Any]:
    """Number, host, process, time and ranks of an attempt; empty where there is none."""
    return parse_record(run / "attempts" / f"{number:04d}.json")


def parse_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or only the beginning of one."""
    try:
        return parsed(path.read_bytes())
    except OSError:
        return {}


def parsed(text: str | bytes) -> dict[str, Any]:
    """The JSON object in a text; empty where there is none, or only the beginning of one."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _take_number(run: Path, facts: dict[str, Any]) -> Attempt:
    """A number that no attempt ever had."""
    while True:
        attempt = Attempt(run, max(numbers(run), default=0) + 1)
        entry = {"attempt": attempt.number, "time": round(time.time(), 3), **facts}
        with tempfile.NamedTemporaryFile("w", dir=run / "attempts", prefix=".lease-") as aside:
            json.dump(entry, aside)
            aside.flush()
            os.fsync(aside.fileno())
            try:
                # A hard link with its content in it is what two processes cannot both make.
                os.link(aside.name, attempt.folder.with_suffix(".json"))
            except FileExistsError:
                continue
        return attempt


def _fence_off(older: Attempt) -> None:
    over = older.over
    # It may have ended, or not begun: then it finds the newer lease before it does anything.
    with suppress(FileNotFoundError):
        os.rename(older.folder, over)
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
