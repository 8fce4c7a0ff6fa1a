"""A run's journal as it stands in its file, whatever the program makes of it; events by their names in it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from glci_dist.runs import events
from glci_dist.runs.events import Event


def read_journal(run: Path) -> list[dict[str, Any]]:
    """The lines that are whole; none of a run that has not begun."""
    journal, found = run / "journal.jsonl", []
    for line in journal.read_bytes().splitlines() if journal.exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def event(name: str, step: int, **details: Any) -> Event:
    """An event of which only this is known."""
    return events.read({"event": name, "step": step, **details})
