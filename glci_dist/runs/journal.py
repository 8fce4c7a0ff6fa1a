"""The journal: what happened in a run, one JSON object a line, written by rank 0 of the newest attempt."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from glci_dist.runs.attempts import Attempt


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

    def write(self, event: str, *, step: int, **details: Any) -> None:
        """Append an event of ``step`` with the time (seconds since 1970), attempt, host and process."""
        entry = {
            "time": round(time.time(), 3),
            "event": event,
            "step": step,
            "attempt": self._attempt.number,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **details,
        }
        with self._lock, self._attempt.fenced():
            self._waiting += json.dumps(entry).encode() + b"\n"
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


def read_journal(run: Path) -> list[dict[str, Any]]:
    """Every event of a run, oldest first; a line that a kill or a full disk tore is passed over."""
    try:
        lines = (run / "journal.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and {"event", "step", "time"} <= event.keys():
            events.append(event)
    return events
