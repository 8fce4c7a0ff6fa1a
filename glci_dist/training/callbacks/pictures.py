"""Picture grids of fixed faces with fixed holes: photo, hole, output, completed (rank 0)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from glci_dist.config import Config
from glci_dist.data.grid import grid, scale_to
from glci_dist.data.index import Index, load_index
from glci_dist.data.loader import StepDataset
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.device_batch import to_device
from glci_dist.training.losses import composite

Show = Callable[[str, np.ndarray, int], None]
_SEED = 20170720
"""Seed of the faces and holes, so that all runs over the same shards show the same."""


class Pictures(Callback):
    """Picture grids of fixed faces at fixed steps, as PNG and for the loggers; redrawn if a step is run again."""

    is_display = True

    def __init__(
        self, config: Config, index: Index, network: nn.Module, device: torch.device, folder: Path, *, show: Show
    ) -> None:
        """``index``: of the training photos, shown unless there are held-out ones. ``network``: the completion network
        or its moving average. ``folder``: for the PNGs. ``show``: called with a name, the picture and the step.
        """
        faces = load_index(config.data.val, config.data.cache) if config.data.val else index
        count = min(config.monitor.pictures, faces.total)
        dataset = StepDataset(
            faces, config.data, config.holes, seed=_SEED, global_batch=count, slots=range(count), lanes=1
        )
        self._batch = to_device(dataset[0], device)
        self._network, self._folder, self._show = network, folder, show
        self._every = config.monitor.pictures_every

    def after_step(self, done: TrainedStep, control: Control) -> None:
        plan, step = done.report.plan, done.report.plan.step
        if (step + 1) % self._every == 0 or plan.ends_phase:
            picture = self._draw()
            path = self._folder / f"step-{step + 1:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
            self._show("pictures", picture, step)

    @torch.no_grad()
    def _draw(self) -> np.ndarray:
        """The grid ``(H, W, 3)``, one row per face, completed in evaluation mode."""
        network, photos, masks = self._network, self._batch.photos, self._batch.masks
        was_training = network.training
        network.eval()
        outputs = network(photos, masks)
        network.train(was_training)
        columns = [photos, photos * (1 - masks) + 0.5 * masks, outputs, composite(outputs, photos, masks)]
        rows = [[_to_bytes(column[i]) for column in columns] for i in range(len(photos))]
        return grid(rows, ["photo", "hole", "output", "completed"], scale_to(photos.shape[-1]))


def _to_bytes(image: Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
