"""The losses. Each is a mean over photos of a per-photo value, so that no world size changes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glci_dist.config import LossConfig


def composite(outputs: Tensor, photos: Tensor, masks: Tensor) -> Tensor:
    """The photo outside the hole, the output inside; all ``(N, 3, H, W)``, masks ``(N, 1, H, W)``."""
    return torch.lerp(photos, outputs, masks.expand_as(photos))


def reconstruction(outputs: Tensor, photos: Tensor, masks: Tensor, config: LossConfig) -> Tensor:
    """Squared (``l2``) or absolute (``l1``) error over the ``hole`` or the ``photo``.

    A photo's value is the mean over its own region, so that a large hole weighs no more than a
    small one; the result is the mean over the photos.
    """
    errors = outputs - photos
    errors = errors.square() if config.reconstruction == "l2" else errors.abs()
    if config.region == "photo":
        return errors.mean()
    inside = (errors * masks).sum((1, 2, 3))
    return (inside / (photos.shape[1] * masks.sum((1, 2, 3))).clamp(min=1)).mean()


def adversarial(logits: Tensor, config: LossConfig) -> Tensor:
    """The completion network's term from the logits ``(N,)`` of its completed photos.

    ``non_saturating``: -log D; ``saturating``: log(1 - D), as in the paper's equation 3.
    """
    if config.adversarial == "saturating":
        return -F.softplus(logits).mean()
    return F.softplus(-logits).mean()


def discrimination(real: Tensor, completed: Tensor) -> tuple[Tensor, Tensor]:
    """The discriminators' two terms, -log D(real) and -log(1 - D(completed)), from logits ``(N,)``."""
    return F.softplus(-real).mean(), F.softplus(completed).mean()
