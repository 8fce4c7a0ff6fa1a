"""Detects a host that is slower than the others, for which all ranks wait at every step."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Straggler:
    """A host that is slower than the others."""

    host: str
    ratio: float
    """Its own time per step over the median of the other hosts'."""
    seconds: float
    """How long it has been slow."""


class StragglerDetector:
    """Compares the hosts by the time that their ranks compute, without waiting for others. On rank 0."""

    def __init__(self, hosts: Sequence[str], *, share: float, seconds: float) -> None:
        """``hosts``: of each rank. StepReport a host that is slower by ``share`` for ``seconds``; ``share`` 0: none."""
        self._hosts, self._share, self._seconds = hosts, share, seconds
        self._sums: dict[str, float] = defaultdict(float)
        self._began = time.monotonic()
        self._since: dict[str, float] = {}
        self._named: set[str] = set()
        self.ratio = 1.0
        """Ratio of the slowest host over the last second or more."""

    def detect(self, own_seconds: Sequence[float]) -> Straggler | None:
        """Add each rank's time of a step; returns a host to report, once each time that one becomes slow."""
        for host, seconds in zip(self._hosts, own_seconds, strict=True):
            self._sums[host] += seconds
        now = time.monotonic()
        if now - self._began < 1 or len(self._sums) < 2:
            return None
        slowest = max(self._sums, key=lambda host: self._sums[host])
        others = statistics.median(value for host, value in self._sums.items() if host != slowest)
        self.ratio = self._sums[slowest] / others if others else 1.0
        self._sums.clear()
        self._began = now
        if not self._share or self.ratio <= 1 + self._share:
            self._since.clear()
            self._named.clear()
            return None
        self._since = {slowest: self._since.get(slowest, now - 1)}
        seconds = now - self._since[slowest]
        if seconds < self._seconds or slowest in self._named:
            return None
        self._named = {slowest}
        return Straggler(slowest, self.ratio, seconds)
