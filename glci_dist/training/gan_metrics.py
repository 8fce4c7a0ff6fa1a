"""Metrics of adversarial training, used for diagnoses; each is a mean over photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glci_dist import components
from glci_dist.data.masks import crop_patches
from glci_dist.errors import UserError
from glci_dist.models.batch_norm import BatchNorm2d
from glci_dist.training.loss_terms import Completions, call_component
from glci_dist.training.metric_registry import Metric

LOGIT_GAP = Metric("contest/margin", "logits, real minus completed")
SHARE_IN_HOLE = Metric("contest/hole_share", "share of the squared adversarial gradient")
BATCH_NORM_GAP = Metric("contest/batch_norm_gap", "running standard deviations")

_LATTICE = 4
"""Period of a checkerboard, px: two upsamplings by two."""


def checkerboard_energy(images: Tensor, masks: Tensor) -> Tensor:
    """Checkerboard energy of the upsampling layers in the hole: ``(N,)``.

    Images ``(N, 3, H, W)`` in [0, 1], H and W multiples of 4, masks ``(N, 1, H, W)``. The difference from the mean of
    3 x 3 pixels is averaged over the hole for each of the 16 positions in a lattice of 4 px; these averages are squared
    and averaged. Texture does not repeat with that period and averages out, a checkerboard (Odena et al., 2016) does
    not.
    """
    grey = images.mean(1, keepdim=True)
    # Pixels at the hole's edge would be compared with the photo around it, and are left out.
    masks = 1 - F.max_pool2d(1 - masks, 3, 1, 1)
    fine = (grey - F.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)) * masks
    count, _, height, width = fine.shape
    shape = (count, height // _LATTICE, _LATTICE, width // _LATTICE, _LATTICE)
    sums, counts = (each.view(shape).sum((1, 3)) for each in (fine, masks))
    return (sums / counts.clamp(min=1)).square().mean((1, 2))


def diversity(images: Tensor, corners: Tensor, patch: int) -> Tensor | None:
    """Mean squared difference of the patches around the holes over pairs of consecutive slots: a scalar.

    Images ``(N, 3, H, W)``, ``corners`` ``(N, 2)``. None for fewer than two photos.
    """
    count = len(images) // 2 * 2
    if not count:
        return None
    patches = crop_patches(images[:count], corners[:count], patch)
    return (patches[0::2] - patches[1::2]).square().mean()


def share_in_hole(gradients: Tensor, masks: Tensor) -> Tensor:
    """Share of the squared gradient at composites ``(N, 3, H, W)`` that lies in the hole, a mean over photos."""
    squares = gradients.float().square()
    inside = (squares * masks).sum((1, 2, 3))
    return (inside / squares.sum((1, 2, 3)).clamp(min=1e-30)).mean()


@torch.no_grad()
def batch_norm_gap(network: nn.Module) -> Tensor | None:
    """Distance of the last batch's means from the running means, in running standard deviations.

    A mean over channels, layers and this rank's groups (``model.batch_norm.group``), of the last pass since the last
    update; None without batch norm.
    """
    gaps = []
    for module in network.modules():
        if isinstance(module, BatchNorm2d) and module.recorded:
            assert module.running_mean is not None
            assert module.running_var is not None
            means, _ = module.recorded[-1]
            gaps.append(((means - module.running_mean).abs() / (module.running_var + module.eps).sqrt()).mean())
    return torch.stack(gaps).mean() if gaps else None


class CompletionMetric:
    """Base of a metric that is computed from the completions of a step, without a gradient."""

    metric: Metric
    """Name, unit, reduction and panel."""

    def __call__(self, completions: Completions) -> Tensor | None:
        """A value per photo, ``(N,)``, or their mean; None if there is no value, on every rank alike."""
        raise NotImplementedError("define __call__(completions)")


@dataclass(frozen=True)
class _FunctionMetric(CompletionMetric):
    metric: Metric
    compute: Callable[[Completions], Tensor | None]

    def __call__(self, completions: Completions) -> Tensor | None:
        return self.compute(completions)


_ALIKE, _PATTERN = "difference between two completions", "checkerboard energy of the upsampling layers"
COMPLETION_METRICS: tuple[CompletionMetric, ...] = (
    _FunctionMetric(
        Metric("contest/lattice", "squared grey level", panel=_PATTERN),
        lambda each: checkerboard_energy(each.outputs, each.masks),
    ),
    _FunctionMetric(
        Metric("contest/lattice_of_photos", "squared grey level", panel=_PATTERN),
        lambda each: checkerboard_energy(each.photos, each.masks),
    ),
    _FunctionMetric(
        Metric("contest/diversity", "squared grey level", panel=_ALIKE),
        lambda each: diversity(each.outputs, each.corners, each.patch),
    ),
    _FunctionMetric(
        Metric("contest/diversity_of_photos", "squared grey level", panel=_ALIKE),
        lambda each: diversity(each.photos, each.corners, each.patch),
    ),
)
"""Of every run; the doctor reads these alone."""


RESERVED_GROUPS = (
    *("loss", "accuracy", "gradient_at_output", "gradient_norm", "learning_rate", "phase", "time", "data", "updates"),
    *("speed", "goodput", "memory", "evaluation", "doctor"),
)
"""First parts of names that are the run's own."""


def completion_metrics(
    custom: Mapping[str, Any], device: torch.device, examples: Sequence[Completions]
) -> list[CompletionMetric]:
    """Those of every run and the user's own, tried on ``examples``, of each photo size that the run has.

    Raises ``UserError`` for one that breaks a rule.
    """
    found = list(COMPLETION_METRICS)
    for component in components.by_name("metrics", custom):
        statistic = component.make(CompletionMetric)
        if not isinstance(getattr(statistic, "metric", None), Metric):
            raise UserError(f"{component.key}: {component.target} has no metric: set metric = Metric(name, ...)")
        if isinstance(statistic, nn.Module):
            statistic.to(device).requires_grad_(False)
        group = statistic.metric.name.partition("/")[0]
        if group in RESERVED_GROUPS:
            raise UserError(
                f"{component.key}: names in {group}/ are the run's own: choose another group for the metric"
            )
        for example in examples:
            value = call_component(component.key, example, partial(_value, statistic, example))
            if value.numel() not in (1, 2):
                raise UserError(
                    f"{component.key}: its value for two photos must be (2,) or one, not {tuple(value.shape)}"
                )
        found.append(statistic)
    return found


@torch.no_grad()
def _value(statistic: CompletionMetric, completions: Completions) -> Tensor:
    value = statistic(completions)
    return torch.zeros(1) if value is None else value
