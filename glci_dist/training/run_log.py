"""The run's output on rank 0: events in its journal and lines on the screen."""

from __future__ import annotations

from glci_dist.errors import Superseded
from glci_dist.runs.events import Event
from glci_dist.runs.journal import Journal
from glci_dist.urls import without_secrets


class RunLog:
    """The log of one attempt; every rank has one."""

    def __init__(self, journal: Journal | None) -> None:
        """``journal``: on rank 0; None on the other ranks, whose log does nothing."""
        self._journal = journal
        self.is_superseded = False
        """Whether a newer attempt was found to own the journal. All ranks learn it from the step report, and end."""

    def event(self, event: Event) -> None:
        """Write an event into the journal."""
        if self._journal is None:
            return
        try:
            self._journal.write(event)
        except Superseded:
            self.is_superseded = True

    def say(self, line: str) -> None:
        """Print a line."""
        if self._journal is not None:
            print(without_secrets(line), flush=True)
