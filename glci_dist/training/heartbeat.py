"""One small collective a step: mean losses, agreed stop, not-finite guard and straggler sight.

It is sent at a step's end and read at the next one's, so that no device is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from glci_dist.cluster.world import World
from glci_dist.training.phases import Moment
from glci_dist.training.updates import Measures

_LOSSES = (
    "reconstruction",
    "adversarial",
    "real_loss",
    "completed_loss",
    "real_accuracy",
    "completed_accuracy",
)
_HOST = ("data_seconds", "collective_seconds", "replaced", "stops")


@dataclass(frozen=True)
class Pulse:
    """What a rank contributes besides its measures."""

    step_seconds: float
    data_seconds: float
    """Waiting for the batch."""
    collective_seconds: float
    """Host time in collectives."""
    replaced: int
    """Samples of this rank's slots that did not decode."""
    stop: bool
    """This rank was asked to stop."""


@dataclass(frozen=True)
class Report:
    """A step as all ranks saw it."""

    moment: Moment
    losses: dict[str, float]
    """Means over all slots, of what the step measured."""
    completion_norm: float | None
    discriminator_norm: float | None
    skipped: bool
    """An update was not applied: its gradient was not finite."""
    step_seconds: tuple[float, ...]
    """Of each rank."""
    data_seconds: float
    """Mean over ranks."""
    collective_seconds: float
    """Mean over ranks."""
    replaced: int
    """Samples that did not decode, over all ranks."""
    stop: bool
    """Some rank was asked to stop: all stop after the step in which they read this."""


class Heartbeat:
    """Sends a step's pulse; hands out the report of the step before."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: tuple[Moment, Measures, torch.Tensor, dist.Work] | None = None

    def send(self, moment: Moment, measures: Measures, pulse: Pulse) -> Report | None:
        """Start this step's collective and return the last step's report (None at the first)."""
        report = self.flush()
        device = self._world.device
        losses = [getattr(measures, name) for name in _LOSSES]
        zero = torch.zeros((), device=device)
        host = torch.zeros(len(_HOST) + self._world.size)
        host[: len(_HOST)] = torch.tensor(
            [pulse.data_seconds, pulse.collective_seconds, float(pulse.replaced), float(pulse.stop)]
        )
        host[len(_HOST) + self._world.rank] = pulse.step_seconds
        vector = torch.cat(
            [
                torch.stack([zero if loss is None else loss.float() for loss in losses]),
                host.to(device, non_blocking=True),
            ]
        )
        work = dist.all_reduce(vector, async_op=True)
        self._pending = (moment, measures, vector, work)
        return report

    def flush(self) -> Report | None:
        """Wait for the collective under way and return its report."""
        if self._pending is None:
            return None
        moment, measures, vector, work = self._pending
        self._pending = None
        work.wait()
        values = vector.tolist()
        size = self._world.size
        host = dict(zip(_HOST, values[len(_LOSSES) :], strict=False))
        losses = {
            name: value / size
            for name, value in zip(_LOSSES, values, strict=False)
            if getattr(measures, name) is not None
        }
        return Report(
            moment=moment,
            losses=losses,
            completion_norm=measures.completion.gradient_norm if measures.completion else None,
            discriminator_norm=measures.discriminator.gradient_norm if measures.discriminator else None,
            skipped=measures.skipped,
            step_seconds=tuple(values[-size:]),
            data_seconds=host["data_seconds"] / size,
            collective_seconds=host["collective_seconds"] / size,
            replaced=round(host["replaced"]),
            stop=host["stops"] > 0,
        )
