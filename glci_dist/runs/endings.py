"""Why an attempt ended: in the journal, and in a file that needs no room on a full disk.

The journal is rank 0's. A rank that fails by itself leaves its reason in the attempt's folder, where rank 0 finds it
when it loses that rank. Each rank's file is ``attempts/0004/ended-00000.json``.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from glci_dist.cluster.collectives import progress
from glci_dist.cluster.elastic import FailureRole
from glci_dist.errors import Superseded
from glci_dist.runs.attempts import Attempt, parse_record
from glci_dist.runs.events import AttemptEnded, Completed, Failed, Stopped
from glci_dist.runs.journal import Journal
from glci_dist.urls import without_secrets

STATES = {Completed.name: "done", Stopped.name: "stopped", Failed.name: "failed"}
"""What became of an attempt, by the name of the event that it ended with."""

_ROOM = 4096
"""Bytes of an ending, taken when the attempt begins."""
_SECONDS = 2.0
"""How long a process that is to end at once waits for the disk."""


class Endings:
    """Writes down why this rank's part in an attempt ends; the first reason counts."""

    def __init__(self, attempt: Attempt, *, rank: int, host: str) -> None:
        self._attempt, self._rank, self._host = attempt, rank, host
        self.journal = Journal(attempt) if rank == 0 else None
        """Rank 0's."""
        self._lock = threading.Lock()
        self._is_told = False
        self._spare: int | None = None
        with suppress(OSError):
            # Given back for the ending: a process that may open no more files can still write it.
            self._spare = os.open(os.devnull, os.O_RDONLY)
        if rank == 0:
            with suppress(OSError):
                _file(attempt.folder, rank).write_bytes(b" " * _ROOM)

    def fail(self, why: str, part: FailureRole = FailureRole.BROKE) -> None:
        """The attempt ends by a failure, a refusal or a signal that leaves no time to save.

        Returns after two seconds at the latest, whatever the disk does: the process may be about to end.
        """
        failed = Failed(max(0, progress().step), why)
        writing = threading.Thread(target=self.end, args=(failed, part), daemon=True)
        writing.start()
        writing.join(_SECONDS)

    def end(self, event: AttemptEnded, part: FailureRole = FailureRole.BROKE) -> None:
        """The attempt ends with ``event``; later calls change nothing."""
        with self._lock:
            if self._is_told:
                return
            self._is_told = True
            if self._spare is not None:
                os.close(self._spare)
        why = without_secrets(" ".join((event.reason or "").split()))
        if self.journal is not None and part is not FailureRole.BROKE:
            why = self._with_cause(why)
        if self._rank == 0 or (isinstance(event, Failed) and part is not FailureRole.LOST):
            self._leave({"event": event.name, "step": event.step, "reason": why, "part": part})
        if self.journal is not None:
            # A newer attempt owns the run: then this one writes nothing into it.
            with suppress(Superseded, OSError):
                self.journal.write(replace(event, reason=why or None))

    def _with_cause(self, why: str) -> str:
        """``why`` with what the rank said that is to blame."""
        cause = cause_of(read_endings(self._attempt))
        if cause:
            return f"{why}: {cause}"
        return f"{why}; it left no word: it was killed, or its host was lost" if "lost another rank" in why else why

    def _leave(self, record: dict[str, Any]) -> None:
        record = {**record, "time": round(time.time(), 3), "rank": self._rank, "host": self._host}
        content = json.dumps(record).encode()
        if len(content) > _ROOM:
            content = json.dumps({**record, "reason": record["reason"][: _ROOM // 8]}).encode()
        for folder in (self._attempt.folder, self._attempt.over):
            with suppress(OSError):
                path = _file(folder, self._rank)
                # In place, where the room was taken before.
                with path.open("r+b" if path.exists() else "wb") as file:
                    file.write(content.ljust(_ROOM))
                return


def read_endings(attempt: Attempt) -> dict[int, dict[str, Any]]:
    """What each rank left of its end, by rank; a rank that left nothing is not in it."""
    found: dict[int, dict[str, Any]] = {}
    for folder in (attempt.folder, attempt.over):
        for path in sorted(folder.glob("ended-*.json")):
            record = parse_record(path)
            if record and path.stem.removeprefix("ended-").isdigit():
                found[int(path.stem.removeprefix("ended-"))] = record
    return found


def cause_of(endings: dict[int, dict[str, Any]]) -> str:
    """What that rank said, other than rank 0, which failed first by itself; empty: none said anything."""
    broke = [rank for rank, each in endings.items() if rank and each.get("part") == FailureRole.BROKE]
    if not broke:
        return ""
    rank = min(broke, key=lambda rank: (str(endings[rank].get("time")), rank))
    first = endings[rank]
    why = str(first.get("reason", ""))
    where = f"rank {rank} on {first.get('host', '?')}"
    return why if why.startswith(where) else f"{where}: {why}"


def _file(folder: Path, rank: int) -> Path:
    return folder / f"ended-{rank:05d}.json"
