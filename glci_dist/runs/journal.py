"""The journal: what happened in a run, one JSON object a line, written by rank 0 of the newest attempt."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glci_dist.errors import UserError
from glci_dist.runs import events
from glci_dist.runs.attempts import Attempt, parsed
from glci_dist.runs.events import CheckpointSaved, Event, Resumed, RolledBack, Started
from glci_dist.urls import without_secrets_in


class Journal:
    """Appends events for one attempt; ``Superseded`` once a newer attempt owns the run. For many threads.

    An event that the disk refuses is kept and written, in its place, with the next one that fits.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.path = attempt.run / "journal.jsonl"
        self._attempt = attempt
        self._lock = threading.Lock()
        self._waiting = b""
        self._is_torn = False

    def write(self, event: Event) -> None:
        """Append an event with the time, attempt, host and process set."""
        now, host = round(time.time(), 3), socket.gethostname()
        event = replace(event, time=now, attempt=self._attempt.number, host=host, pid=os.getpid())
        with self._lock, self._attempt.fenced():
            self._waiting += json.dumps(without_secrets_in(event.record())).encode() + b"\n"
            self._write_waiting()

    def _write_waiting(self) -> None:
        # The end of a line that did not fit stands alone, and is passed over by who reads.
        lines = (b"\n" if self._is_torn else b"") + self._waiting
        try:
            # Without O_CREAT: a path that is gone was taken away by a newer attempt.
            file = os.open(self._attempt.journal, os.O_WRONLY | os.O_APPEND)
            try:
                written = os.write(file, lines)
            finally:
                os.close(file)
        except FileNotFoundError:
            raise
        except OSError:
            return
        whole = lines[:written].rfind(b"\n") + 1
        self._is_torn = written > whole
        self._waiting = lines[whole:]


def read_journal(run: Path) -> list[Event]:
    """Every event of a run, oldest first; a line that a kill or a full disk tore is passed over.

    Raises ``UserError`` where the file cannot be read.
    """
    try:
        lines = (run / "journal.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{run / 'journal.jsonl'} cannot be read: {error.strerror}: mend that") from error
    return [events.read(record) for record in map(parsed, lines) if _is_event(record)]


def last_saved(journal: Sequence[Event]) -> int | None:
    """Step of the newest checkpoint that the journal tells of and nothing in it took back; None: it tells of none."""
    step: int | None = None
    for event in journal:
        # On resuming, damaged ones were set aside, and told of.
        if isinstance(event, CheckpointSaved | Resumed):
            step = event.step
        elif isinstance(event, Started):
            step = None
        elif isinstance(event, RolledBack) and event.to is not None:
            step = event.to
    return step


def _is_event(record: Mapping[str, Any]) -> bool:
    """Whether it has what every reader needs; what else stands in it may be of another version."""
    numbers = (record.get("step"), record.get("time"))
    return isinstance(record.get("event"), str) and all(
        isinstance(each, (int, float)) and math.isfinite(each) for each in numbers
    )
