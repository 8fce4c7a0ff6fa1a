"""Lets the doctor look at the contest while it is trained, and does what its configuration answers. On every rank."""

from __future__ import annotations

from glci_dist.config import Config
from glci_dist.errors import Fault
from glci_dist.models.build import build_discriminators
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.checkpointer import Rollback
from glci_dist.training.doctor import Diagnosis, Doctor
from glci_dist.training.health import Health
from glci_dist.training.phases import Moment
from glci_dist.training.run_log import RunLog
from glci_dist.training.scalars import scalars
from glci_dist.training.updates import Contest


class Treatment(Callback):
    """Diagnoses each step of a contest, tells what is new, and answers it."""

    def __init__(
        self,
        config: Config,
        doctor: Doctor,
        contest: Contest,
        health: Health,
        rollback: Rollback,
        log: RunLog,
        *,
        steps: int,
    ) -> None:
        """``steps``: of the schedule."""
        self._config, self._doctor, self._contest, self._health = config, doctor, contest, health
        self._rollback, self._log, self._steps = rollback, log, steps

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
                    f"step {step}: contest {found.finding.line}; {self._config.engine.rollbacks} rollbacks to the last "
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
        doctor, window = self._doctor, self._config.doctor.window
        if not doctor.is_renewal_due:
            return
        if step + window >= self._steps:
            doctor.is_renewal_due = False
            self._log.say(f"step {step}: too few steps are left for discriminators that begin anew: these stay")
            return
        self._log.event("renewed", step, network="discriminators")
        self._log.say(f"step {step}: the discriminators begin anew, and have {window} steps to themselves")
        self._contest.discriminators.begin_anew(build_discriminators(self._config).state_dict())
        self._contest.balance.forget()
        self._health.forget("discriminator")
        doctor.let_learn_alone(step)
