"""What the trainer does in a world, step by step, for tests to compare: run in each rank by ``run_world``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from glci_dist import compose
from glci_dist.cluster.world import joined
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.engines import Engine
from glci_dist.training.phases import StepPlan
from glci_dist.training.scalars import scalars
from glci_dist.training.setup import prepare
from glci_dist.training.trainer import Trainer

TINY = (
    "recipe=modern",
    "experiment=faces64",
    "engine.precision=fp32",
    "engine.threads=1",
    "global_batch=8",
    "model.completion={width: 0.125, enlarge: resize, fill: mean, residual: false, skips: false, blocks: plain}",
    "losses.reconstruction=l2",
    # For every ZeRO stage.
    "optimizers.completion={kind: adam, betas: [0.9, 0.99]}",
    # No coarse steps, and the paper's dilations.
    "~tuning",
    "phases.completion={lr_schedule: cosine, lr_final: 0.02}",
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


_LOSSES = ("loss/", "accuracy/")


@dataclass
class Recording:
    """One rank's view of a run."""

    keys: list[tuple[str, ...]] = field(default_factory=list)
    """Of this rank's slots, a step a row."""
    losses: list[dict[str, float]] = field(default_factory=list)
    """Means over all slots, a step a row."""
    shown: list[dict[str, float]] = field(default_factory=list)
    """All else that TensorBoard is shown of a step, but for times."""
    changed: list[set[str]] = field(default_factory=list)
    """Networks that are not bitwise what they were before the step (``completion``, ``discriminator``, ``average``)."""
    traces: list[str] = field(default_factory=list)
    """Parameters with a gradient where there should be none, and frozen ones after a step."""
    updates: list[tuple[str, bool]] = field(default_factory=list)
    """Of which network, and whether it was applied."""
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    """Averaged over the ranks, before clipping, an update a row (ZeRO stage 0)."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """All networks' parameters and running statistics at the end."""


class Recorder(Callback):
    """Writes a recording; the last of a run's callbacks."""

    def __init__(self, trainer: Trainer) -> None:
        self.recording = Recording()
        self._trainer = trainer
        self._before: dict[str, Tensor] = {}
        for side in trainer.step.engines():
            self._watch_updates(side)

    def before_step(self, plan: StepPlan) -> None:
        self._before = self._weights()

    def after_step(self, done: TrainedStep, control: Control) -> None:
        assert done.batch is not None
        recording, after = self.recording, self._weights()
        recording.keys.append(done.batch.keys)
        values = done.report.values
        recording.losses.append({name: value for name, value in values.items() if name.startswith(_LOSSES)})
        recording.shown.append(
            {
                name: value
                for name, value in scalars(done.report, self._trainer.metrics)
                if not name.startswith((*_LOSSES, "time/"))
            }
        )
        recording.changed.append(
            {name.partition("/")[0] for name, tensor in after.items() if not tensor.equal(self._before[name])}
        )
        for side, engine in self._trainer.step.engines().items():
            self._note_gradients(side, engine)
            recording.traces += [f"{side}/{name} is frozen" for name, p in _parameters(engine) if not p.requires_grad]
        recording.weights = after

    def on_rewind(self, step: int) -> None:
        raise AssertionError("nothing rolls back here")

    def _weights(self) -> dict[str, Tensor]:
        return weights(**self._trainer.step.networks())

    def _note_gradients(self, side: str, engine: Engine) -> None:
        self.recording.traces += [
            f"{side}/{name} has a gradient" for name, p in _parameters(engine) if p.grad is not None
        ]

    def _watch_updates(self, side: str) -> None:
        """Take down what an engine is about to apply, and what becomes of it."""
        engines = self._trainer.step.engines()
        patched: Any = engines[side]
        real_step = patched.step

        def step(*arguments: Any) -> Any:
            self.recording.gradients.append(
                {f"{side}/{name}": p.grad.clone() for name, p in _parameters(patched) if p.grad is not None}
            )
            for other, engine in engines.items():
                if other != side:
                    self._note_gradients(other, engine)
            update = real_step(*arguments)
            self.recording.updates.append((side, update.applied))
            return update

        patched.step = step


def record(overrides: list[str], smooth: bool = False) -> Recording:
    """Train a run from its start to its end and write down what happened.

    ``smooth`` puts SiLU in the place of every ReLU.
    """
    torch.manual_seed(1234)
    config = compose.load(overrides)
    with joined(config.engine) as world:
        trainer = prepare(config, world)
        if smooth:
            for network in trainer.step.networks().values():
                make_smooth(network)
        recorder = Recorder(trainer)
        trainer.callbacks.all.append(recorder)
        trainer.start.report()
        ending = trainer.run()
        trainer.close()
    assert ending is None, ending
    return recorder.recording


def weights(**networks: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors of some networks, by ``network/tensor``."""
    return {
        f"{place}/{name}": tensor.detach().clone()
        for place, network in networks.items()
        for name, tensor in network.state_dict().items()
    }


def make_smooth(network: nn.Module) -> None:
    """Put SiLU, which has no kink, in the place of every ReLU."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())


def _parameters(engine: Engine) -> list[tuple[str, nn.Parameter]]:
    return list(engine.network.named_parameters())
