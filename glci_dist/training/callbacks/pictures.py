"""Pictures of a run's completions (rank 0)."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.callbacks.tensorboard import TensorBoard
from glci_dist.training.pictures import PictureGrid


class Pictures(Callback):
    """Grids of fixed faces at fixed steps, as PNG and in TensorBoard; those of steps that are run again are redrawn."""

    is_display = True

    def __init__(self, grid: PictureGrid, network: nn.Module, folder: Path, every: int, board: TensorBoard) -> None:
        self._grid, self._network, self._folder, self._every, self._board = grid, network, folder, every, board

    def after_step(self, done: TrainedStep, control: Control) -> None:
        moment = done.report.moment
        step = moment.step
        if (self._every and (step + 1) % self._every == 0) or moment.ends_phase:
            picture = self._grid.draw(self._network, self._folder / f"step-{step + 1:08d}.png")
            self._board.add_picture(picture, step)
