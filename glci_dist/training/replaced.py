"""Photos that did not decode, as they are said on the screen: the first at once, all of them at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glci_dist.data.batch import Replacement


class Replaced:
    """Of one attempt (rank 0)."""

    def __init__(self, shards: str, journal: Path, tell: Callable[[str], None]) -> None:
        self._shards, self._journal, self._tell = shards, journal, tell
        self._photos: set[tuple[str, str]] = set()
        self._steps: set[int] = set()
        self._slots = 0

    def add(self, step: int, replacement: Replacement) -> None:
        """Take down a photo that another one of its shard stands in for."""
        if not self._photos:
            self._tell(
                f"step {step}: {replacement.shard}/{replacement.key} does not decode ({replacement.reason}): the "
                "next photo of its shard stands in for it, as for others that follow; look: "
                f"glci shards verify {self._shards}"
            )
        self._photos.add((replacement.shard, replacement.key))
        self._steps.add(step)
        self._slots += 1

    def sum_up(self) -> None:
        """Say how many they were, if there were any; once."""
        if self._photos:
            self._tell(
                f"{len(self._photos)} photo(s) that do not decode were replaced by others, {self._slots} time(s) in "
                f"{len(self._steps)} step(s): {self._journal} names them; glci shards verify {self._shards}"
            )
        self._photos.clear()
