"""Pictures of a run's completions (rank 0)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.pictures import PictureGrid

Show = Callable[[str, np.ndarray, int], None]


class Pictures(Callback):
    """Picture grids of fixed faces at fixed steps, as PNG and for the loggers; redrawn if a step is run again."""

    is_display = True

    def __init__(self, grid: PictureGrid, network: nn.Module, folder: Path, every: int, *, show: Show) -> None:
        self._grid, self._network, self._folder, self._every, self._show = grid, network, folder, every, show

    def after_step(self, done: TrainedStep, control: Control) -> None:
        plan = done.report.plan
        step = plan.step
        if (self._every and (step + 1) % self._every == 0) or plan.ends_phase:
            picture = self._grid.draw(self._network, self._folder / f"step-{step + 1:08d}.png")
            self._show("pictures", picture, step)
