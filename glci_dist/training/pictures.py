"""Picture grids of fixed faces with fixed holes: photo, hole, output, completed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from glci_dist.config import Config
from glci_dist.data.grid import grid, scale_to
from glci_dist.data.index import Index
from glci_dist.data.loader import StepDataset
from glci_dist.training.device_batch import to_device
from glci_dist.training.losses import composite

_SEED = 20170720
"""Seed of the faces and holes, so that all runs over the same shards show the same."""


class PictureGrid:
    """The faces of a run's picture grids, one row per face."""

    def __init__(self, index: Index, config: Config, device: torch.device) -> None:
        count = min(config.monitor.pictures, index.total)
        faces = StepDataset(
            index, config.data, config.holes, seed=_SEED, global_batch=count, slots=range(count), lanes=1
        )
        batch = faces[0]
        self._batch = to_device(batch, device, range(count))

    @torch.no_grad()
    def draw(self, network: nn.Module, path: Path) -> np.ndarray:
        """Complete the faces with ``network`` in evaluation mode; write and return the grid ``(H, W, 3)``."""
        photos, masks = self._batch.photos, self._batch.masks
        was_training = network.training
        network.eval()
        outputs = network(photos, masks)
        network.train(was_training)
        columns = [photos, photos * (1 - masks) + 0.5 * masks, outputs, composite(outputs, photos, masks)]
        rows = [[_to_bytes(column[i]) for column in columns] for i in range(len(photos))]
        picture = grid(rows, ["photo", "hole", "output", "completed"], scale_to(photos.shape[-1]))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        return picture


def _to_bytes(image: Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
