"""Diagnoses adversarial training, and applies the configured answers (``doctor``). On every rank."""

from __future__ import annotations

from collections.abc import Callable

from glci_dist.config import Config
from glci_dist.errors import Fault
from glci_dist.models.build import build_discriminators
from glci_dist.runs.events import Diagnosed, NetworkReset
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.checkpointer import Rollback
from glci_dist.training.doctor import Diagnosis, Doctor
from glci_dist.training.gan_step import GanTrainStep
from glci_dist.training.gradient_monitor import GradientMonitor
from glci_dist.training.metric_registry import MetricRegistry
from glci_dist.training.phases import StepPlan
from glci_dist.training.run_log import RunLog
from glci_dist.training.scalars import scalars

Treat = Callable[[Diagnosis, StepPlan, Control], None]


class DiagnoseTraining(Callback):
    """Passes each step to the doctor, and reports its diagnoses."""

    def __init__(self, doctor: Doctor, metrics: MetricRegistry, log: RunLog, *, treat: Treat | None) -> None:
        """``treat`` is called with each diagnosis."""
        self._doctor, self._metrics, self._log, self._treat = doctor, metrics, log, treat

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report = done.report
        if report.skipped:
            return
        # Also if a signal ends the run, as the doctor's state is saved and must not depend on it.
        found = self._doctor.diagnose(
            report.plan,
            {name: value for name, value in scalars(report, self._metrics) if not self._metrics.is_custom(name)},
        )
        if found is None:
            return
        self._report(found, report.plan)
        if self._treat is not None:
            self._treat(found, report.plan, control)

    def _report(self, found: Diagnosis, plan: StepPlan) -> None:
        finding, factors = found.finding, self._doctor.factors(plan)
        changed = factors if found.answer in ("balance", "rollback") else {}
        self._log.event(
            Diagnosed(
                plan.step,
                state=str(finding.state),
                evidence=finding.evidence,
                advice=finding.advice,
                answer=found.answer,
                alpha=changed.get("alpha"),
                discriminator_lr=changed.get("discriminator_lr"),
            )
        )
        done = ", ".join(f"{name} x {factor:.3g}" for name, factor in factors.items())
        balanced = f"; balanced: {done}" if found.answer == "balance" else ""
        where = "adversarial training" if plan.is_joint else f"phase {plan.phase}:"
        self._log.say(f"step {plan.step}: {where} {finding.line}{balanced}")


class Treatment(Callback):
    """Applies the answers to diagnoses; a run has one if its configuration asks for any but ``warn``."""

    def __init__(
        self,
        config: Config,
        doctor: Doctor,
        gan: GanTrainStep,
        gradient_monitor: GradientMonitor,
        rollback: Rollback,
        log: RunLog,
        *,
        steps: int,
    ) -> None:
        """``steps``: length of the schedule."""
        self._config, self._doctor, self._gan, self._gradient_monitor = config, doctor, gan, gradient_monitor
        self._rollback, self._log, self._steps = rollback, log, steps

    def adjust(self, plan: StepPlan) -> StepPlan:
        return self._doctor.adjust(plan)

    def on_rewind(self, step: int) -> None:
        # The checkpoint's discriminators may be older than their reset.
        self._reset_if_due(step)

    def treat(self, found: Diagnosis, plan: StepPlan, control: Control) -> None:
        """Apply the answer to a diagnosis of the step of ``plan``."""
        step = plan.step
        if found.answer == "stop":
            control.end(Fault(f"step {step}: adversarial training {found.finding.line} (doctor answered stop)"))
        elif found.answer == "rollback" and self._rollback.is_allowed():
            control.go_back(self._rollback.go_back(step, skip_step=False))
            return
        elif found.answer == "rollback":
            control.end(
                Fault(
                    f"step {step}: adversarial training {found.finding.line}; {self._config.engine.rollbacks} "
                    "rollbacks to the last checkpoint (engine.rollbacks) did not help"
                )
            )
        if found.answer != "stop":
            # If no rollback helped, the state saved now has the lowered learning rate and counts the reset.
            self._reset_if_due(step + 1)

    def _reset_if_due(self, step: int) -> None:
        """Reset the discriminators, before ``step``, to their weights at the run's start, on every rank."""
        doctor, window = self._doctor, self._config.doctor.window
        if not doctor.is_reset_due:
            return
        if step + window >= self._steps:
            doctor.is_reset_due = False
            self._log.say(f"step {step}: too few steps are left to reset the discriminators: they stay as they are")
            return
        self._log.event(NetworkReset(step, "discriminators"))
        self._log.say(f"step {step}: discriminators reset; training them alone for {window} steps")
        self._gan.discriminators.reset(build_discriminators(self._config).state_dict())
        self._gan.adversarial_weight.reset()
        self._gradient_monitor.reset("discriminator")
        doctor.train_discriminators_alone(step)
