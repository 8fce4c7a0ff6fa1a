"""Reacts to a step's gradients: measures the adversarial weight, and answers updates that were not applied.

On every rank, as averaged gradients are the same on all ranks.
"""

from __future__ import annotations

from pathlib import Path

from glci_dist.cluster.world import World
from glci_dist.config import EngineConfig
from glci_dist.errors import Fault
from glci_dist.runs.events import GradientNotFinite, GradientSpike
from glci_dist.training.adversarial_weight import AdversarialWeight
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.checkpointer import Rollback
from glci_dist.training.gradient_monitor import GradientMonitor, RejectedUpdate
from glci_dist.training.run_log import RunLog


class MeasureAdversarialWeight(Callback):
    """Passes the norms of both gradients at the completion network's output to ``AdversarialWeight``."""

    def __init__(self, adversarial_weight: AdversarialWeight) -> None:
        self._adversarial_weight = adversarial_weight

    def after_step(self, done: TrainedStep, control: Control) -> None:
        norms = done.report.gradients_at_output
        if norms is not None and not done.report.skipped:
            self._adversarial_weight.measure(done.report.plan, *norms)


class GradientWatch(Callback):
    """Answers updates that were not applied (``engine.not_finite``, ``engine.spike``): skip, stop or rollback."""

    def __init__(
        self,
        config: EngineConfig,
        world: World,
        gradient_monitor: GradientMonitor,
        rollback: Rollback,
        log: RunLog,
        *,
        journal: Path,
    ) -> None:
        """``journal``: its path, for messages."""
        self._config, self._world, self._gradient_monitor, self._rollback = config, world, gradient_monitor, rollback
        self._log, self._journal = log, journal

    def after_step(self, done: TrainedStep, control: Control) -> None:
        rejected = self._gradient_monitor.check(done.measures, done.limits)
        if rejected is None or done.batch is None:
            return
        step = done.report.plan.step
        keys = tuple(key for rank in self._world.gather_objects(done.batch.keys) for key in rank)
        # In fp16 occasional overflows are part of dynamic loss scaling.
        is_usual = self._config.precision == "fp16" and rejected.kind == "not-finite"
        answer = "skip" if is_usual else rejected.answer
        self._report(rejected, answer, step, keys)
        if answer == "stop" or self._gradient_monitor.skips >= self._config.not_finite_limit:
            _fail(
                control, step, f"{self._gradient_monitor.skips} step(s) in a row had a gradient that {_what(rejected)}"
            )
        elif answer == "rollback" and control.ending is None:
            if self._rollback.is_allowed():
                control.go_back(self._rollback.go_back(step, skip_step=True))
            else:
                often = self._config.rollbacks
                _fail(control, step, f"{often} rollbacks to the last checkpoint (engine.rollbacks) did not help")

    def _report(self, rejected: RejectedUpdate, answer: str, step: int, keys: tuple[str, ...]) -> None:
        sides, norms = rejected.sides, tuple(map(str, rejected.norms))
        if rejected.kind == "spike":
            self._log.event(GradientSpike(step, sides, answer, norms, rejected.limits, keys))
        else:
            self._log.event(GradientNotFinite(step, sides, answer, norms, keys))
        self._log.say(
            f"step {step}: the gradient of the {' and the '.join(sides)} network {_what(rejected)}; "
            f"answer: {answer} (keys of its samples: {self._journal})"
        )


def _fail(control: Control, step: int, reason: str) -> None:
    control.end(
        Fault(
            f"step {step}: {reason}: see the journal for the samples; "
            "start another run (name=...) with lower learning rates or fp32"
        )
    )


def _what(rejected: RejectedUpdate) -> str:
    if rejected.kind == "not-finite":
        return "is not finite"
    norms = ", ".join(f"{norm:.3g} > {limit:.3g}" for norm, limit in zip(rejected.norms, rejected.limits, strict=True))
    return f"jumped (norm {norms})"
