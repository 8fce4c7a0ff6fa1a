"""One small collective a step: mean losses, agreed stop and straggler sight.

It is read at once. Every update has waited for its gradient's norm already, and batch norm holds the
ranks together within each step, so there is little left to wait for; and a signal, or a step that
went wrong, is answered before the next step begins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist

from glci_dist.cluster.collectives import collective
from glci_dist.cluster.world import World
from glci_dist.training.phases import Moment
from glci_dist.training.updates import Measures

_LOSSES = (
    "reconstruction",
    "adversarial",
    "feature_matching",
    "perceptual",
    "total_variation",
    "real_loss",
    "completed_loss",
    "penalty",
    "real_accuracy",
    "completed_accuracy",
)
_SIGNALS = (
    "margin",
    "hole_share",
    "lattice",
    "lattice_of_photos",
    "diversity",
    "diversity_of_photos",
    "batch_norm_gap",
)
_PULLS = ("reconstruction_pull", "adversarial_pull")
_HOST = ("data_seconds", "collective_seconds", "stall_seconds", "replaced", "stops", "superseded", "remade")


@dataclass(frozen=True)
class Pulse:
    """What a rank contributes besides its measures."""

    step_seconds: float
    data_seconds: float
    """Waiting for the batch."""
    collective_seconds: float
    """Host time in collectives."""
    replaced: int = 0
    """Samples of this rank's slots that did not decode."""
    stop: bool = False
    """This rank was asked to stop."""
    stall_seconds: float = 0.0
    """Waiting for checkpoints, since the last step's end."""
    superseded: bool = False
    """This rank knows that a newer attempt owns the run."""
    remade: int = 0
    """Times that this rank's batch was made again, because a loader worker was lost."""


@dataclass(frozen=True)
class Report:
    """A step as all ranks saw it."""

    moment: Moment
    losses: dict[str, float]
    """Means over all slots, of what the step measured."""
    signals: dict[str, float]
    """Means over all slots, of what the contest does to the completions."""
    pulls: tuple[float, float] | None
    """Norms of the gradients at the completion network's output over the whole batch: of all that is no contest, and
    of the adversarial term without its weight; None where there was none."""
    alpha: float | None
    """The adversarial term's weight."""
    completion_norm: float | None
    discriminator_norm: float | None
    skipped: bool
    """An update was not applied."""
    step_seconds: tuple[float, ...]
    """Of each rank."""
    own_seconds: tuple[float, ...]
    """Of each rank, those in which it waited for no other (GPUs: none that its collectives' launch does not show)."""
    data_seconds: float
    """Mean over ranks."""
    collective_seconds: float
    """Mean over ranks."""
    replaced: int
    """Samples that did not decode, over all ranks."""
    stop: bool
    """Some rank was asked to stop: all stop after this step."""
    stall_seconds: float
    """Mean over ranks."""
    superseded: bool
    """A newer attempt owns the run: all end at once."""
    remade: int = 0
    """Times that a batch was made again, because a loader worker was lost, over all ranks."""


def beat(world: World, moment: Moment, measures: Measures, pulse: Pulse) -> Report:
    """Put the pulses of all ranks together; every rank calls it at a step's end."""
    device, size = world.device, world.size
    measured = (*_LOSSES, *_SIGNALS, *_PULLS)
    losses = [getattr(measures, name) for name in measured]
    zero = torch.zeros((), device=device)
    host = torch.zeros(len(_HOST) + 2 * size)
    host[: len(_HOST)] = torch.tensor(
        [
            pulse.data_seconds,
            pulse.collective_seconds,
            pulse.stall_seconds,
            float(pulse.replaced),
            float(pulse.stop),
            float(pulse.superseded),
            float(pulse.remade),
        ]
    )
    host[len(_HOST) + world.rank] = pulse.step_seconds
    host[len(_HOST) + size + world.rank] = max(0.0, pulse.step_seconds - pulse.collective_seconds)
    vector = torch.cat([torch.stack([zero if loss is None else loss.float() for loss in losses]), host.to(device)])
    with collective("the heartbeat"):
        dist.all_reduce(vector)
        values = vector.tolist()
    sums = dict(zip(_HOST, values[len(measured) :], strict=False))
    # A rank's loss is a mean over its share alone: in the batch's mean its gradient is a size-th as large.
    squares = values[len(measured) - len(_PULLS) : len(measured)]
    means = {
        name: value / size for name, value in zip(measured, values, strict=False) if getattr(measures, name) is not None
    }
    pulls = (math.sqrt(squares[0]) / size, math.sqrt(squares[1]) / size)
    return Report(
        moment=moment,
        losses={name: means[name] for name in _LOSSES if name in means},
        signals={name: means[name] for name in _SIGNALS if name in means},
        pulls=pulls if measures.adversarial_pull is not None else None,
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
        stop=sums["stops"] > 0,
        superseded=sums["superseded"] > 0,
        remade=round(sums["remade"]),
    )
