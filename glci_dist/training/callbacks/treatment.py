"""Lets the doctor look at the contest while it is trained, and does what its configuration answers. On every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from glci_dist.errors import Fault
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.checkpointer import Rollback
from glci_dist.training.doctor import Diagnosis, Doctor
from glci_dist.training.health import Health
from glci_dist.training.phases import Moment
from glci_dist.training.run_log import RunLog
from glci_dist.training.scalars import scalars
from glci_dist.training.updates import Contest


@dataclass(frozen=True)
class Patient:
    """What a treatment changes, and what it is told of."""

    contest: Contest
    health: Health
    first_weights: Callable[[], Mapping[str, Tensor]]
    """The discriminators' whole state as it was at the run's start."""
    steps: int
    """Of the schedule."""
    window: int
    """Steps that discriminators which begin anew have to themselves."""
    rollbacks: int
    """``engine.rollbacks``, for messages."""


class Treatment(Callback):
    """Diagnoses each step of a contest, tells what is new, and answers it."""

    def __init__(self, doctor: Doctor, patient: Patient, rollback: Rollback, log: RunLog) -> None:
        self._doctor, self._patient, self._rollback, self._log = doctor, patient, rollback, log

    def plan(self, moment: Moment) -> Moment:
        return self._doctor.adjusted(moment)

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report, step = done.report, done.report.moment.step
        if report.skipped:
            return
        # A run that a signal ends is judged too: what goes on later must know all that this one saw.
        found = self._doctor.see(report.moment, dict(scalars(report)))
        if found is None:
            return
        self._tell(found, report.moment)
        if found.answer == "stop":
            control.end(Fault(f"step {step}: contest {found.finding.line} (doctor answered stop)"))
        elif found.answer == "rollback" and self._rollback.may_help():
            control.go_back(self._rollback.go_back(step, pass_over=False))
            return
        elif found.answer == "rollback":
            control.end(
                Fault(
                    f"step {step}: contest {found.finding.line}; {self._patient.rollbacks} rollbacks to the last "
                    "checkpoint (engine.rollbacks) did not help"
                )
            )
        if found.answer != "stop":
            # Where no rollback helped, what is saved now has the lowered learning rate, and counts them as begun anew.
            self._renew_if_due(step + 1)

    def on_rewind(self, step: int) -> None:
        # A checkpoint's discriminators may be of before they began anew.
        self._renew_if_due(step)

    def _tell(self, found: Diagnosis, moment: Moment) -> None:
        finding, factors = found.finding, self._doctor.factors(moment)
        self._log.event(
            "diagnosis",
            moment.step,
            state=str(finding.state),
            evidence=list(finding.evidence),
            advice=finding.advice,
            answer=found.answer,
            **(factors if found.answer in ("balance", "rollback") else {}),
        )
        done = ", ".join(f"{name} x {factor:.3g}" for name, factor in factors.items())
        told = f"; balanced: {done}" if found.answer == "balance" else ""
        where = "contest" if moment.is_contest else f"phase {moment.phase}:"
        self._log.say(f"step {moment.step}: {where} {finding.line}{told}")

    def _renew_if_due(self, step: int) -> None:
        """Put the discriminators back to what they were at the run's start before ``step``, as every rank does."""
        doctor, patient = self._doctor, self._patient
        if not doctor.is_renewal_due:
            return
        if step + patient.window >= patient.steps:
            doctor.is_renewal_due = False
            self._log.say(f"step {step}: too few steps are left for discriminators that begin anew: these stay")
            return
        self._log.event("renewed", step, network="discriminators")
        self._log.say(f"step {step}: the discriminators begin anew, and have {patient.window} steps to themselves")
        patient.contest.discriminators.begin_anew(patient.first_weights())
        patient.contest.balance.forget()
        patient.health.forget("discriminator")
        doctor.let_learn_alone(step)
