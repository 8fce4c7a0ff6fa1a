"""What a world does, step by step, for tests to compare: run in each rank by ``run_world``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from glci_dist import compose
from glci_dist.cluster.world import joined
from glci_dist.training.engines import Engine, Update
from glci_dist.training.setup import prepare
from glci_dist.training.step_report import RankStepInfo, reduce_step

TINY = (
    "recipe=modern",
    "experiment=faces64",
    "engine.precision=fp32",
    "global_batch=8",
    "model.completion.width=0.125",
    "model.discriminator.width=0.0625",
    "data.workers=0",
    "monitor.pictures_every=0",
    "monitor.progress=false",
    "phases.completion.completion_lr=5e-5",
    "phases.discriminator.discriminator_lr=2.5e-6",
    "phases.joint.completion_lr=5e-6",
    "phases.joint.discriminator_lr=2.5e-6",
    "losses.feature_matching=0",
    "phases.joint.balance=0",
    "phases.joint.discriminator_every=1",
)
"""A run that a test can afford: 8 photos a step, small networks, full precision, a contest of two terms alone, in
which both sides learn at every step.

The learning rates are a fortieth of those of a usual run, or less. Two worlds differ by rounding, rounding flips a
ReLU here and there, and a flipped ReLU moves a gradient by 1e-4; large steps multiply that each step.
"""


def tiny(shards: str, runs: str, *, steps: tuple[int, int, int], extra: tuple[str, ...] = ()) -> list[str]:
    """Overrides of a tiny run with so many steps in its three phases."""
    phases = zip(("completion", "discriminator", "joint"), steps, strict=True)
    return [
        *TINY,
        f"data.shards={shards}",
        f"runs={runs}",
        *(f"phases.{name}.steps={count}" for name, count in phases),
        *extra,
    ]


@dataclass
class Recording:
    """One rank's view of a run."""

    keys: list[tuple[str, ...]] = field(default_factory=list)
    """Of this rank's slots, a step a row."""
    losses: list[dict[str, float]] = field(default_factory=list)
    """Means over all slots, a step a row."""
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    """Averaged over the ranks, an update a row (ZeRO stage 0)."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Both networks' parameters and running statistics at the end."""


def record(overrides: list[str], smooth: bool = False) -> Recording:
    """Run every step of a configuration and write down what happened.

    ``smooth`` puts SiLU in the place of every ReLU.
    """
    torch.manual_seed(1234)
    config = compose.load(overrides)
    recording = Recording()
    with joined(config.engine) as world:
        trainer = prepare(config, world)
        gan = trainer.step.gan
        for name, engine in trainer.step.engines().items():
            _record_gradients(name, engine, recording)
            if smooth:
                make_smooth(engine.network)
        for step, batch in enumerate(trainer.batches.from_step(0)):
            plan = trainer.schedule.at(step)
            measures = gan.update(trainer.step.to_device(batch), plan)
            report = reduce_step(world, plan, measures, RankStepInfo(0, 0, 0), gan.metrics)
            if report.gradients_at_output is not None:
                gan.adversarial_weight.measure(plan, *report.gradients_at_output)
            recording.keys.append(batch.keys)
            recording.losses.append(report.values)
        recording.weights = weights(gan.completion, gan.discriminators)
        trainer.close()
    return recording


def weights(*engines: Engine) -> dict[str, Tensor]:
    """Copies of all tensors of some networks, the network's place before the name."""
    return {
        f"{place}/{name}": tensor.detach().clone()
        for place, engine in enumerate(engines)
        for name, tensor in engine.network.state_dict().items()
    }


def make_smooth(network: nn.Module) -> None:
    """Put SiLU, which has no kink, in the place of every ReLU."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())


def _record_gradients(side: str, engine: Engine, recording: Recording) -> None:
    real_step = engine.step

    def step(lr: float, limit: float) -> Update:
        recording.gradients.append(
            {f"{side}/{n}": p.grad.clone() for n, p in engine.network.named_parameters() if p.grad is not None}
        )
        return real_step(lr, limit)

    patched: Any = engine
    patched.step = step
