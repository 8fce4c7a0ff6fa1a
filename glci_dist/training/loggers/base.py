"""What every logger does, and what it is told of the run (rank 0)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RunInfo:
    """What a logger or a callback of the user's may know of the run."""

    name: str
    folder: Path
    """The run's folder."""
    config: Mapping[str, Any]
    """The whole configuration, resolved, without credentials."""
    steps: int
    """Of the whole schedule."""
    rank: int
    world_size: int


class Logger:
    """Does nothing; subclasses override what they need. It stands on rank 0 alone.

    Where it cannot write (``OSError``), that is told once and ends nothing.
    """

    def begin(self, step: int, panels: Mapping[str, Sequence[str]]) -> None:
        """The run starts or goes on from ``step``, also after a rollback: what was logged of later ones is void.

        ``panels``: titles of charts, and the names of the scalars that stand in each.
        """

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Means over the steps since the last call, by ``group/name``; ``step`` is the last of them."""

    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """A picture ``(H, W, 3)``, uint8, RGB."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """Words, as Markdown."""

    def close(self) -> None:
        """The run ends, in whatever way."""
