"""Terms of the completion network's loss besides reconstruction and adversarial loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from glci_dist import components
from glci_dist.config import LossConfig
from glci_dist.errors import UserError, in_a_line
from glci_dist.evaluation.distances import perceptual
from glci_dist.models.efficientnet import load_efficientnet
from glci_dist.training.losses import composite, total_variation
from glci_dist.training.metric_registry import Metric


@dataclass(frozen=True)
class Completions:
    """N photos with the completion network's outputs."""

    outputs: Tensor
    """``(N, 3, H, W)`` in [0, 1], fp32: the network's raw outputs, also outside the hole."""
    photos: Tensor
    """``(N, 3, H, W)`` in [0, 1]."""
    masks: Tensor
    """``(N, 1, H, W)``, 1 in the hole."""
    corners: Tensor
    """``(N, 2)``: left, top of the local patch around each hole, px."""
    patch: int
    """Side of the local patches, px."""

    @cached_property
    def composites(self) -> Tensor:
        """``(N, 3, H, W)``: the photo outside the hole, the output inside."""
        return composite(self.outputs, self.photos, self.masks)


class LossTerm:
    """Base of a loss term. It must draw no random numbers and keep no state between calls."""

    def __call__(self, completions: Completions) -> Tensor:
        """A value per photo, ``(N,)``, that depends on this photo alone; the loss is their weighted mean."""
        raise NotImplementedError("define __call__(completions)")


class TotalVariation(LossTerm):
    """``total_variation`` of the composites."""

    def __call__(self, completions: Completions) -> Tensor:
        return total_variation(completions.composites, completions.masks)


class Perceptual(LossTerm):
    """Perceptual distance between composites and photos, on EfficientNet-Lite0, at the photos' size.

    `glci evaluate` measures with the same network, so its perceptual and Frechet distances are biased for a run that
    was trained with this term: use LPIPS or FID.
    """

    def __init__(self, device: torch.device) -> None:
        self._network = load_efficientnet().to(device)

    def __call__(self, completions: Completions) -> Tensor:
        """Computed in fp32, whatever the autocast dtype."""
        with torch.autocast(completions.photos.device.type, enabled=False):
            with torch.no_grad():
                real, _ = self._network(completions.photos)
            maps, _ = self._network(completions.composites)
            return perceptual(maps, real)


@dataclass(frozen=True)
class WeightedTerm:
    """A term, its weight in the loss, and its metric."""

    metric: Metric
    weight: float
    term: LossTerm


def loss_terms(losses: LossConfig, device: torch.device, examples: Sequence[Completions]) -> list[WeightedTerm]:
    """The configured terms, the user's own tried on ``examples``, of each photo size that the run has.

    Raises ``UserError`` for one of the user's own that breaks a rule.
    """
    terms = []
    if losses.total_variation:
        metric = Metric("loss/total_variation", "mean difference of neighbouring pixels", label="total variation")
        terms.append(WeightedTerm(metric, losses.total_variation, TotalVariation()))
    if losses.perceptual:
        metric = Metric("loss/perceptual", "perceptual distance", label="perceptual")
        terms.append(WeightedTerm(metric, losses.perceptual, Perceptual(device)))
    for component in components.by_name("losses.terms", losses.terms):
        term = component.make(LossTerm)
        if isinstance(term, nn.Module):
            term.to(device).requires_grad_(False)
        for example in examples:
            _check(component.key, term, example)
        metric = Metric(f"loss/{component.name}", label=component.name.replace("_", " "))
        terms.append(WeightedTerm(metric, component.weight, term))
    return terms


def example_completions(device: torch.device, *, size: int, patch: int) -> Completions:
    """``Completions`` of two photos, all noise, to check the user's components with."""
    generator = torch.Generator().manual_seed(0)
    outputs, photos = (torch.rand(2, 3, size, size, generator=generator).to(device) for _ in range(2))
    masks = torch.zeros(2, 1, size, size, device=device)
    masks[..., size // 4 : size // 2, size // 4 : size // 2] = 1
    corners = torch.zeros(2, 2, dtype=torch.int32, device=device)
    return Completions(outputs, photos, masks, corners, patch)


def _check(key: str, term: LossTerm, given: Completions) -> None:
    """Raise ``UserError`` if a term depends on more than each photo alone, or has no gradient."""
    whole = replace(given, outputs=given.outputs.requires_grad_())
    first = Completions(whole.outputs[:1], given.photos[:1], given.masks[:1], given.corners[:1], given.patch)
    values = call_component(key, whole, lambda: term(whole))
    if tuple(values.shape) != (2,) or not values.isfinite().all():
        raise UserError(
            f"{key}: the value for two photos must be finite, one a photo, (2,), not {tuple(values.shape)}: take the "
            "mean over channels and pixels alone"
        )
    if not torch.equal(values, call_component(key, whole, lambda: term(whole))):
        raise UserError(f"{key}: two calls with the same completions differ: let it draw nothing, and keep nothing")
    if not torch.allclose(values[:1], call_component(key, first, lambda: term(first)), rtol=1e-4, atol=1e-6):
        raise UserError(
            f"{key}: a photo's value depends on the photos beside it, so that it would change with the number of ranks"
        )
    gradient = torch.autograd.grad(values.sum(), whole.outputs, allow_unused=True)[0] if values.requires_grad else None
    if gradient is None or not gradient.isfinite().all():
        raise UserError(
            f"{key}: the value has no finite gradient with respect to the outputs: nothing would be learned from it"
        )


def call_component(key: str, given: Completions, call: Callable[[], Tensor]) -> Tensor:
    """Call a component of the user's on ``given``; raises ``UserError`` if it fails, or does what it may not."""
    before = [each.detach().clone() for each in (given.outputs, given.photos, given.masks)]
    try:
        value = call()
    except Exception as error:  # the user's class can raise anything
        side = given.photos.shape[-1]
        raise UserError(f"{key} fails on two photos of {side} px: {in_a_line(error)}") from error
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{key} must return a tensor of floats, not {kind}")
    if not all(map(torch.equal, before, (given.outputs, given.photos, given.masks))):
        raise UserError(f"{key} changes the tensors that it is given: let it work on copies")
    return value
