"""Where the time goes: start-up, the attempt's account, hosts that are slower than the others."""

from __future__ import annotations

from glci_dist.runs.events import FirstStepDone, PhaseStarted, StragglerFound
from glci_dist.runs.ledger import Ledger
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.phases import StepPlan
from glci_dist.training.run_log import RunLog
from glci_dist.training.startup_timer import StartupTimer
from glci_dist.training.stragglers import Stragglers


class Startup(Callback):
    """Writes down what the time from the process's start to the end of its first step went into."""

    def __init__(self, startup: StartupTimer, log: RunLog) -> None:
        self._startup, self._log = startup, log
        self._is_done = False

    def after_step(self, done: TrainedStep, control: Control) -> None:
        if not self._is_done:
            self._is_done = True
            self._startup.lap("the first step")
            self._log.event(FirstStepDone(done.report.plan.step, dict(self._startup.seconds)))


class PhaseStarts(Callback):
    """Writes down where phases begin."""

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def before_step(self, plan: StepPlan) -> None:
        if plan.phase_step == 0:
            self._log.event(PhaseStarted(plan.step, plan.phase))


class Accounting(Callback):
    """Keeps the attempt's account (rank 0)."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def after_step(self, done: TrainedStep, control: Control) -> None:
        self._ledger.see(done.report.plan.step, done.report)


class StragglerWatch(Callback):
    """Names a host that has kept the others waiting (rank 0)."""

    def __init__(self, stragglers: Stragglers, log: RunLog) -> None:
        self._stragglers, self._log = stragglers, log

    def after_step(self, done: TrainedStep, control: Control) -> None:
        slow = self._stragglers.slowest(done.report.own_seconds)
        if slow is None:
            return
        step, seconds = done.report.plan.step, round(slow.seconds, 1)
        self._log.event(StragglerFound(step, slow.host, round(slow.ratio, 3), seconds))
        self._log.say(
            f"{slow.host} has needed {slow.ratio:.2f} times the other hosts' time a step for "
            f"{slow.seconds:.0f} s: all wait for it"
        )
