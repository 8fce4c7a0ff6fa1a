"""Times the parts of a process's startup, up to its first step."""

from __future__ import annotations

import time

from glci_dist.runs.ledger import process_start


class StartupTimer:
    """A stopwatch that started with the process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """By part, in order."""
        self._last = process_start()

    def record(self, part: str) -> None:
        """Attribute the time since the last call to ``part``."""
        now = time.time()
        self.seconds[part] = round(self.seconds.get(part, 0.0) + now - self._last, 3)
        self._last = now
