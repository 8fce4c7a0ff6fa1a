"""Penalties of the discriminators' gradient with respect to what they are shown.

A photo's local patch is cut from the same pixels, so that the gradient is that of both branches. In fp32: squares of
small gradients are lost in half precision. The discriminators must judge each photo by itself (no batch norm).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glci_dist import components
from glci_dist.config import LossConfig
from glci_dist.data.masks import crop_patches
from glci_dist.training.metrics import Metric

Logits = Callable[[Tensor, Tensor], Tensor]
"""(photos (N, 3, H, W), patches) -> logits (N,)."""


@dataclass(frozen=True)
class PenaltyInputs:
    """The discriminators, and what they are shown of N photos."""

    logits: Logits
    photos: Tensor
    """``(N, 3, H, W)`` in [0, 1]."""
    completed: Tensor
    """The composites, ``(N, 3, H, W)``, without a gradient."""
    shares: Tensor
    """``(N,)`` in [0, 1): how far from each photo towards its completion to go, a draw of the step and the slot."""
    real_corners: Tensor
    """``(N, 2)``: left, top of the local patch on the photo, px."""
    completed_corners: Tensor
    """The same on the completed photo."""
    patch: int
    """Side of the local patches, px."""

    def gradients(self, images: Tensor, corners: Tensor) -> Tensor:
        """The gradient of the logits at ``images`` ``(N, 3, H, W)``, which has a gradient itself."""
        images = images.detach().float().requires_grad_()
        with torch.autocast(images.device.type, enabled=False):
            logits = self.logits(images, crop_patches(images, corners, self.patch))
            (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return gradients


class Penalty:
    """Base of a penalty. It draws nothing at random, and keeps nothing from one call to the next."""

    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        """A value for each photo, ``(N,)``; the discriminators' loss has its weighted mean."""
        raise NotImplementedError("define __call__(inputs)")


class R1(Penalty):
    """Half the squared norm of the gradient on real photos (Mescheder et al., ICML 2018)."""

    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        return inputs.gradients(inputs.photos, inputs.real_corners).square().sum((1, 2, 3)) / 2


class GradientPenalty(Penalty):
    """(norm of the gradient - 1)^2 between each photo and its completion (Gulrajani et al., NeurIPS 2017)."""

    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        between = torch.lerp(inputs.photos, inputs.completed, inputs.shares.view(-1, 1, 1, 1))
        gradients = inputs.gradients(between, inputs.completed_corners)
        return (gradients.square().sum((1, 2, 3)).add(1e-12).sqrt() - 1).square()


@dataclass(frozen=True)
class WeightedPenalty:
    """A penalty, its weight, and the metric that shows it beside the sum of all; None: it is ours."""

    weight: float
    penalty: Penalty
    metric: Metric | None = None


def penalties(losses: LossConfig) -> list[WeightedPenalty]:
    """The penalties that a configuration asks for. Raises ``UserError`` for one that cannot be made."""
    found = []
    if losses.r1:
        found.append(WeightedPenalty(losses.r1, R1()))
    if losses.gradient_penalty:
        found.append(WeightedPenalty(losses.gradient_penalty, GradientPenalty()))
    for component in components.by_name("losses.penalties", losses.penalties):
        metric = Metric(f"loss/{component.name}", label=component.name.replace("_", " "))
        found.append(WeightedPenalty(component.weight, component.make(Penalty), metric))
    return found
