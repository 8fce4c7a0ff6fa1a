"""The base of loggers, and what components of the user's own get to know about the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RunInfo:
    """The run, for a logger or callback of the user's own."""

    name: str
    folder: Path
    """The run's folder."""
    config: Mapping[str, Any]
    """The whole configuration, resolved, without credentials."""
    steps: int
    """Length of the whole schedule."""
    rank: int
    world_size: int


class Logger:
    """Base of loggers: does nothing; override what you need. On rank 0 alone.

    An ``OSError`` is reported once, and training continues.
    """

    def begin(self, step: int, panels: Mapping[str, Sequence[str]]) -> None:
        """Called when the run starts or continues at ``step``, also after a rollback: later entries are void then.

        ``panels``: titles of charts, each with the names of its scalars.
        """

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log means over the steps since the last call, by ``group/name``; ``step`` is the last of them."""

    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Log a picture ``(H, W, 3)``, uint8, RGB."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """Log a text, as Markdown."""

    def close(self) -> None:
        """Called at the end of the run, however it ends, and before ``begin`` after a rollback."""
