"""The perceptual term of the completion network's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from glci_dist.evaluation.distances import perceptual
from glci_dist.models.efficientnet import load_efficientnet


class PerceptualTerm:
    """Mean perceptual distance of composites from their photos, on EfficientNet-Lite0, at the photos' own size.

    `glci evaluate` measures with the same network: over a run that was trained with this term its perceptual and
    Frechet distance say less than they seem to, and LPIPS or FID are the ones to ask.
    """

    def __init__(self, device: torch.device) -> None:
        self._network = load_efficientnet().to(device)

    def __call__(self, composites: Tensor, photos: Tensor) -> Tensor:
        """Both ``(N, 3, H, W)`` in [0, 1]; in fp32, whatever the precision of the training."""
        with torch.autocast(composites.device.type, enabled=False):
            with torch.no_grad():
                real, _ = self._network(photos)
            maps, _ = self._network(composites)
            return perceptual(maps, real).mean()
