"""Where the time from a process's start to its first step goes."""

from __future__ import annotations

import time

from glci_dist.runs.ledger import process_start


class StartupTimer:
    """A stopwatch that began with the process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Of each part, in order."""
        self._last = process_start()

    def lap(self, part: str) -> None:
        """``part`` is what was done since the last lap."""
        now = time.time()
        self.seconds[part] = round(self.seconds.get(part, 0.0) + now - self._last, 3)
        self._last = now
