"""Penalties on the discriminators' gradient with respect to their inputs.

The local patch is cropped from the photo inside the graph, so the gradient is that of both branches. Computed in fp32,
as squares of small gradients underflow in half precision. Logits must not depend on other photos (no batch norm).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from glci_dist import components
from glci_dist.config import LossConfig
from glci_dist.data.masks import crop_patches
from glci_dist.training.metric_registry import Metric

Logits = Callable[[Tensor, Tensor], Tensor]
"""(photos (N, 3, H, W), patches) -> logits (N,)."""


@dataclass(frozen=True)
class PenaltyInputs:
    """The discriminators, and N photos with their completions."""

    logits: Logits
    photos: Tensor
    """``(N, 3, H, W)`` in [0, 1]."""
    completed: Tensor
    """The composites, ``(N, 3, H, W)``, detached."""
    draw_shares: Callable[[], Tensor]
    """Draws ``shares``."""
    real_corners: Tensor
    """``(N, 2)``: left, top of the local patch on the photo, px."""
    completed_corners: Tensor
    """``(N, 2)``: left, top of the local patch on the composite, px."""
    patch: int
    """Side of the local patches, px."""

    @cached_property
    def shares(self) -> Tensor:
        """``(N,)`` in [0, 1): how far from each photo towards its completion to go, a draw of the step and the slot."""
        return self.draw_shares()

    def gradients(self, images: Tensor, corners: Tensor) -> Tensor:
        """The gradient of the logits at ``images`` ``(N, 3, H, W)``, itself differentiable."""
        images = images.detach().float().requires_grad_()
        with torch.autocast(images.device.type, enabled=False):
            logits = self.logits(images, crop_patches(images, corners, self.patch))
            (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return gradients


class Penalty:
    """Base of a penalty. It must draw no random numbers and keep no state between calls."""

    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        """A value per photo, ``(N,)``; their weighted mean is added to the discriminators' loss."""
        raise NotImplementedError("define __call__(inputs)")


class R1(Penalty):
    """Half the squared gradient norm on real photos (Mescheder et al., ICML 2018)."""

    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        return inputs.gradients(inputs.photos, inputs.real_corners).square().sum((1, 2, 3)) / 2


class GradientPenalty(Penalty):
    """(gradient norm - 1)^2 between each photo and its composite (WGAN-GP; Gulrajani et al., NeurIPS 2017)."""

    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        between = torch.lerp(inputs.photos, inputs.completed, inputs.shares.view(-1, 1, 1, 1))
        gradients = inputs.gradients(between, inputs.completed_corners)
        return (gradients.square().sum((1, 2, 3)).add(1e-12).sqrt() - 1).square()


@dataclass(frozen=True)
class WeightedPenalty:
    """A penalty, its weight, and its own metric besides that of the sum (only for the user's own)."""

    weight: float
    penalty: Penalty
    metric: Metric | None = None


def penalties(losses: LossConfig) -> list[WeightedPenalty]:
    """The configured penalties. Raises ``UserError`` for one that cannot be constructed."""
    found = []
    if losses.r1:
        found.append(WeightedPenalty(losses.r1, R1()))
    if losses.gradient_penalty:
        found.append(WeightedPenalty(losses.gradient_penalty, GradientPenalty()))
    for component in components.by_name("losses.penalties", losses.penalties):
        metric = Metric(f"loss/{component.name}", label=component.name.replace("_", " "))
        found.append(WeightedPenalty(component.weight, component.make(Penalty), metric))
    return found
