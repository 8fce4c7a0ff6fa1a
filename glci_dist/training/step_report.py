"""One small all-reduce per step: mean losses, the decision to stop, and the times of all ranks.

Its result is read at once, so that a signal or a failed step is handled before the next step. That costs
little, since every update has already waited for its gradient's norm, and batch norm synchronises the ranks
within each step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from glci_dist.cluster.collectives import collective
from glci_dist.cluster.world import World
from glci_dist.training.gan_step import ADVERSARIAL_GRADIENT, RECONSTRUCTION_GRADIENT, StepMeasurements
from glci_dist.training.metric_registry import Metric, OverRanks
from glci_dist.training.phases import StepPlan


@dataclass(frozen=True)
class RankStepInfo:
    """A rank's contribution besides its measures: only numbers and flags, as they are summed over ranks."""

    step_seconds: float
    data_seconds: float
    """Time spent waiting for the batch."""
    collective_seconds: float
    """Host time in collectives."""
    replaced: int = 0
    """Samples of this rank's slots that did not decode."""
    stop: bool = False
    """A signal asked this rank to stop."""
    stall_seconds: float = 0.0
    """Time spent waiting for checkpoints since the end of the last step."""
    superseded: bool = False
    """This rank knows that a newer attempt owns the run."""
    remade: int = 0
    """How often this rank's batch was loaded again because a loader worker was lost."""


@dataclass(frozen=True)
class StepReport:
    """A step reduced over all ranks."""

    plan: StepPlan
    values: dict[str, float]
    """Measurements reduced over ranks, by the metrics' names."""
    alpha: float | None
    """Weight of the adversarial loss."""
    completion_norm: float | None
    discriminator_norm: float | None
    skipped: bool
    """An update was not applied."""
    step_seconds: tuple[float, ...]
    """Of each rank."""
    own_seconds: tuple[float, ...]
    """Of each rank, without collectives, where it waits for others (on GPUs only their launch is subtracted)."""
    data_seconds: float
    """Mean over ranks."""
    collective_seconds: float
    """Mean over ranks."""
    replaced: int
    """Samples that did not decode, over all ranks."""
    stop: bool
    """A signal asked some rank to stop: all stop after this step."""
    stall_seconds: float
    """Mean over ranks."""
    superseded: bool
    """A newer attempt owns the run: all end at once."""
    remade: int = 0
    """How often a batch was loaded again because a loader worker was lost, over all ranks."""

    @property
    def gradients_at_output(self) -> tuple[float, float] | None:
        """Gradient norms at the completion network's output over the whole batch: of all non-adversarial losses, and
        of the adversarial loss, unweighted; None without an adversarial loss.
        """
        if ADVERSARIAL_GRADIENT.name not in self.values:
            return None
        return self.values[RECONSTRUCTION_GRADIENT.name], self.values[ADVERSARIAL_GRADIENT.name]


def reduce_step(
    world: World, plan: StepPlan, measures: StepMeasurements, info: RankStepInfo, metrics: Sequence[Metric]
) -> StepReport:
    """All-reduce a step; every rank calls it at the step's end. ``metrics``: all that a step can have."""
    size, own = world.size, asdict(info)
    zero = torch.zeros((), device=world.device)
    seconds = torch.zeros(2, size)
    seconds[:, world.rank] = torch.tensor([info.step_seconds, max(0.0, info.step_seconds - info.collective_seconds)])
    host = torch.cat([torch.tensor([float(value) for value in own.values()]), seconds.flatten()])
    measured = [measures.values.get(metric, zero).float() for metric in metrics]
    vector = torch.cat([torch.stack(measured), host.to(world.device)])
    with collective("the all-reduce of a step"):
        if size > 1:
            dist.all_reduce(vector)
        values = vector.tolist()
    sums = dict(zip(own, values[len(metrics) :], strict=False))
    return StepReport(
        plan=plan,
        values={
            metric.name: _over_ranks(metric, value, size)
            for metric, value in zip(metrics, values, strict=False)
            if metric in measures.values
        },
        alpha=measures.alpha,
        completion_norm=measures.completion.gradient_norm if measures.completion else None,
        discriminator_norm=measures.discriminator.gradient_norm if measures.discriminator else None,
        skipped=measures.skipped,
        step_seconds=tuple(values[-2 * size : -size]),
        own_seconds=tuple(values[-size:]),
        data_seconds=sums["data_seconds"] / size,
        collective_seconds=sums["collective_seconds"] / size,
        stall_seconds=sums["stall_seconds"] / size,
        replaced=round(sums["replaced"]),
        stop=sums["stop"] > 0,
        superseded=sums["superseded"] > 0,
        remade=round(sums["remade"]),
    )


def _over_ranks(metric: Metric, total: float, size: int) -> float:
    # A rank's loss is the mean over its share alone; in the batch's mean its gradient is 1 / size as large.
    return (math.sqrt(total) if metric.over_ranks is OverRanks.NORM else total) / size
