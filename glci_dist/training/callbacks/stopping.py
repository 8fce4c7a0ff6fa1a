"""Ends a run for outside reasons: a newer attempt, a signal. On every rank."""

from __future__ import annotations

from glci_dist.cluster.signals import StopRequest
from glci_dist.cluster.world import World
from glci_dist.errors import Interrupted
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.events import SignalReceived
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.run_log import RunLog


class LeaseWatch(Callback):
    """Ends the run at once if a newer attempt owns it; the first callback, so that nothing more is written."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    def after_step(self, done: TrainedStep, control: Control) -> None:
        if done.report.superseded:
            control.end(self._attempt.superseded())


class StopSignals(Callback):
    """Ends the run after a step in which any rank got a signal to stop."""

    def __init__(self, stop: StopRequest, world: World, log: RunLog) -> None:
        self._stop, self._world, self._log = stop, world, log

    def after_step(self, done: TrainedStep, control: Control) -> None:
        if not done.report.stop:
            return
        step, names = done.report.plan.step, self._world.all_gather_objects(self._stop.name)
        self._log.event(SignalReceived(step, tuple(names)))
        said = ", ".join(sorted({name for name in names if name is not None}))
        control.end(Interrupted(f"stopped by {said} after step {step}"))
