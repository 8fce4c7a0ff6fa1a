"""Reports photos that did not decode on the screen: the first at once, the total at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glci_dist.data.batch import Replacement


class ReplacedSampleReporter:
    """The replaced photos of one attempt (rank 0)."""

    def __init__(self, shards: str, journal: Path, say: Callable[[str], None]) -> None:
        self._shards, self._journal, self._say = shards, journal, say
        self._photos: set[tuple[str, str]] = set()
        self._steps: set[int] = set()
        self._slots = 0

    def add(self, step: int, replacement: Replacement) -> None:
        """Count a photo that was replaced by another one of its shard."""
        if not self._photos:
            self._say(
                f"step {step}: {replacement.shard}/{replacement.key} does not decode ({replacement.reason}): the "
                "next photo of its shard stands in for it, as for others that follow; look: "
                f"glci shards verify {self._shards}"
            )
        self._photos.add((replacement.shard, replacement.key))
        self._steps.add(step)
        self._slots += 1

    def report_total(self) -> None:
        """Print the total, if there were any; once."""
        if self._photos:
            self._say(
                f"{len(self._photos)} photo(s) that do not decode were replaced by others, {self._slots} time(s) in "
                f"{len(self._steps)} step(s): {self._journal} names them; glci shards verify {self._shards}"
            )
        self._photos.clear()
