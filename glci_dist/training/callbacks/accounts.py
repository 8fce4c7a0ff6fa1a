"""Time accounting: startup, the attempt's ledger, phases, slow hosts."""

from __future__ import annotations

from glci_dist.runs.events import FirstStepDone, PhaseStarted, StragglerFound
from glci_dist.runs.ledger import Ledger
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.phases import StepPlan
from glci_dist.training.run_log import RunLog
from glci_dist.training.startup_timer import StartupTimer
from glci_dist.training.stragglers import StragglerDetector


class Startup(Callback):
    """Writes the parts of the time from the process's start to the end of its first step into the journal."""

    def __init__(self, startup: StartupTimer, log: RunLog) -> None:
        self._startup, self._log = startup, log
        self._is_done = False

    def after_step(self, done: TrainedStep, control: Control) -> None:
        if not self._is_done:
            self._is_done = True
            self._startup.record("the first step")
            self._log.event(FirstStepDone(done.report.plan.step, dict(self._startup.seconds)))


class PhaseStarts(Callback):
    """Writes the start of each phase into the journal."""

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def before_step(self, plan: StepPlan) -> None:
        if plan.phase_step == 0:
            self._log.event(PhaseStarted(plan.step, plan.phase))


class Accounting(Callback):
    """Adds each step to the attempt's ledger (rank 0)."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def after_step(self, done: TrainedStep, control: Control) -> None:
        self._ledger.add_step(done.report.plan.step, done.report)


class StragglerWatch(Callback):
    """Reports a host that is slower than the others (rank 0)."""

    def __init__(self, stragglers: StragglerDetector, log: RunLog) -> None:
        self._stragglers, self._log = stragglers, log

    def after_step(self, done: TrainedStep, control: Control) -> None:
        slow = self._stragglers.detect(done.report.own_seconds)
        if slow is None:
            return
        step, seconds = done.report.plan.step, round(slow.seconds, 1)
        self._log.event(StragglerFound(step, slow.host, round(slow.ratio, 3), seconds))
        self._log.say(
            f"{slow.host} has needed {slow.ratio:.2f} times the other hosts' time a step for "
            f"{slow.seconds:.0f} s: all wait for it"
        )
