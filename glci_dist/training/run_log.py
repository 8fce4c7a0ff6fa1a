"""What a run writes down and says: events in its journal and lines on the screen, on rank 0 alone."""

from __future__ import annotations

from glci_dist.errors import Superseded
from glci_dist.runs.events import Event
from glci_dist.runs.journal import Journal
from glci_dist.urls import without_secrets


class RunLog:
    """Of one attempt; every rank holds one."""

    def __init__(self, journal: Journal | None) -> None:
        """``journal``: rank 0's; None on every other rank, whose log is silent."""
        self._journal = journal
        self.is_superseded = False
        """Whether the journal was found to be a newer attempt's. All ranks have to end alike: the heartbeat tells."""

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
