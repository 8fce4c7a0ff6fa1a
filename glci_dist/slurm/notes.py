"""What a job's launchers leave in ``RUN/jobs`` for `glci status`: crashes of their workers, why they gave the job up.

Files of ``JOB.RESTART.HOST``; one writer each. A disk that is full is one of the reasons to give up, so the room for
saying so is taken at the start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from glci_dist.runs.attempts import parsed
from glci_dist.slurm.backends.scheduling import PREEMPTED

_ROOM = 16384
"""Bytes of a verdict."""


class Notes:
    """Those of one launcher. Where the disk does not take them, the job's output has them, perhaps."""

    def __init__(self, run: Path, job: str, restart: int, host: str) -> None:
        self._jobs, self._job, self._host = run / "jobs", job, host
        self._crashes = self._jobs / f"{job}.{restart}.{host}.crashes.jsonl"
        self._verdict = self._jobs / f"{job}.{restart}.{host}.verdict.json"
        self._again = self._jobs / f"{job}.{restart}.{host}.again.json"
        self._meeting = self._jobs / f"{job}.{restart}.meeting.json"

    def reserve(self) -> None:
        """Take the room for a verdict; give back what earlier starts of the job did not need."""
        with suppress(OSError):
            self.release()
            self._verdict.write_bytes(b" " * _ROOM)

    def release(self) -> None:
        """Give back the room of verdicts that were not given."""
        with suppress(OSError):
            for path in self._jobs.glob(f"{self._job}.*.{self._host}.verdict.json"):
                if not path.read_bytes().strip():
                    path.unlink()

    def crash(self, *, time: float, step: int, cause: str) -> None:
        """Note a crash that began on this host."""
        with suppress(OSError), self._crashes.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time, 3), "step": step, "cause": cause}) + "\n")

    def meet(self, *, host: str, port: int) -> None:
        """Say where the job's nodes meet in this start of it. Raises ``OSError``: without it they cannot."""
        aside = self._meeting.with_name(f".{self._meeting.name}")
        aside.write_text(json.dumps({"host": host, "port": port}), encoding="utf-8")
        aside.replace(self._meeting)

    def meeting(self) -> int | None:
        """The port that the first node said; None: it has not yet."""
        with suppress(OSError):
            # A shared folder's client may believe for a while that a file is not there, unless its folder is listed.
            if self._meeting.name in os.listdir(self._jobs):
                port = parsed(self._meeting.read_text(encoding="utf-8")).get("port")
                return None if port is None else int(port)
        return None

    def part(self) -> None:
        """Nobody is to meet there any more."""
        with suppress(OSError):
            self._meeting.unlink()

    def again(self, *, step: int, why: str, warning: str) -> None:
        """Note that the job asks to be queued again: with the checkpoint of which step, and why.

        ``warning``: why the scheduler warned it that its end is near; empty where it did not.
        """
        with suppress(OSError):
            self._again.write_text(json.dumps({"step": step, "why": why, "warning": warning}), encoding="utf-8")

    def verdict(self, record: Mapping[str, Any]) -> None:
        """Leave why the job ends, in the room that was taken for it."""
        with suppress(OSError), self._verdict.open("r+b" if self._verdict.exists() else "wb") as file:
            file.write(json.dumps(record).encode().ljust(_ROOM))


def crashes(run: Path, job: str, restart: int) -> list[dict[str, Any]]:
    """Crashes of a job's workers, oldest first: ``time``, ``step``, ``cause``."""
    files = (run / "jobs").glob(f"{job}.{restart}.*.crashes.jsonl")
    found = [parsed(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    known = [crash for crash in found if {"time", "step", "cause"} <= crash.keys()]
    return sorted(known, key=lambda crash: float(crash["time"]))


def asked_again(run: Path, job: str, restart: int) -> tuple[str, str]:
    """Why a start of a job asked to be queued again, and why the scheduler had warned it; empty where it did not."""
    for _, record in _records(run, f"{job}.{restart}.*.again.json"):
        return str(record.get("why", "")), str(record.get("warning", ""))
    return "", ""


def idle_starts(run: Path, job: str, *, step: int, before: int) -> int:
    """How many starts of a job in a row, the present one among them, brought no newer checkpoint than ``step``'s.

    The present one is restart ``before``, which ends with the checkpoint of ``step``. Earlier ones count that asked to
    be queued again themselves, and not to make room for another job.
    """
    steps: dict[int, int] = {}
    for path, record in _records(run, f"{job}.*.again.json"):
        restart = int(path.name.removeprefix(f"{job}.").split(".")[0])
        if restart < before and record["warning"] != PREEMPTED:
            steps[restart] = int(record["step"])
    # Before its first start it had none.
    newest_first = [*(steps[restart] for restart in sorted(steps, reverse=True)), 0]
    return sum(1 for _ in takewhile(lambda reached: reached >= step, newest_first))


def verdicts(run: Path, job: str, restart: int | None = None) -> list[dict[str, Any]]:
    """Why a job's launchers gave it up, in one of its starts or in any."""
    return [record for _, record in _records(run, f"{job}.{'*' if restart is None else restart}.*.verdict.json")]


def left_out(run: Path, job: str) -> list[str]:
    """Nodes that a job goes on without, because ranks crashed there."""
    return sorted({verdict["left_out"] for verdict in verdicts(run, job) if verdict.get("left_out")})


def _records(run: Path, pattern: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of such a name that hold a record, in the order of their names."""
    for path in sorted((run / "jobs").glob(pattern)):
        if record := parsed(path.read_text(encoding="utf-8")):
            yield path, record
