"""Progress on the screen, and lost output (rank 0)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from tqdm import tqdm

from glci_dist import output
from glci_dist.runs.events import OutputLost
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.metric_registry import MetricRegistry
from glci_dist.training.phases import Schedule
from glci_dist.training.run_log import RunLog


class _Mark(NamedTuple):
    """When a step was reached."""

    step: int
    time: float


class Progress(Callback):
    """A line with phase, step, speed and time left: a live bar on a terminal, else a line every 30 s.

    Speed is that of the phase without its first step, whose time also holds the save and the evaluation between two
    phases. The rest of the run is taken to need as many seconds a pixel as this attempt did after its first step.
    """

    is_display = True
    _SECONDS = 30.0

    def __init__(self, metrics: MetricRegistry, schedule: Schedule, *, first_step: int) -> None:
        self._metrics, self._schedule = metrics, schedule
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            initial=first_step,
            total=schedule.steps,
            dynamic_ncols=True,
            disable=not self._live,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]",
        )
        self._said = time.perf_counter()
        self._phase = ""
        self._attempt: _Mark | None = None

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report = done.report
        plan, reached = report.plan, report.plan.step + 1
        now, changed = time.perf_counter(), plan.phase != self._phase
        here = _Mark(reached, now)
        self._attempt = self._attempt or here
        if changed:
            self._phase, self._in_phase = plan.phase, here
        if self._live or changed or now - self._said >= self._SECONDS or reached == self._schedule.steps:
            figures = " ".join(f"{label} {value:.4g}" for label, value in self._metrics.labelled(report.values))
            told = ", ".join([*self._pace(here, plan.batch), figures])
            if self._live:
                self._bar.set_description(plan.phase, refresh=False)
                self._bar.set_postfix_str(told, refresh=False)
                self._bar.update(1)
            else:
                self._said = now
                print(f"{plan.phase}: step {reached}/{self._schedule.steps}, {told}", flush=True)

    def _pace(self, here: _Mark, batch: int) -> Iterator[str]:
        """Speed in photos per second and minutes left, each as soon as it was measured."""
        if (steps := here.step - self._in_phase.step) > 0:
            yield f"{batch * steps / max(1e-9, here.time - self._in_phase.time):.0f} img/s"
        assert self._attempt is not None
        if pixels := self._schedule.pixels(self._attempt.step, here.step):
            left = self._schedule.pixels(here.step) * (here.time - self._attempt.time) / pixels
            yield f"{left / 60:.1f} min left"

    def on_rewind(self, step: int) -> None:
        self._phase, self._attempt = "", None
        self._bar.n = self._bar.initial = step

    def close(self) -> None:
        self._bar.close()


class LostOutput(Callback):
    """Reports once per stream that output cannot be written; training continues."""

    is_display = True

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def after_step(self, done: TrainedStep, control: Control) -> None:
        for loss in output.take_losses():
            self._log.event(OutputLost(done.report.plan.step, loss.stream, loss.reason))
            # The reader has left, but the run continues and the shell waits for it: say why.
            output.say(f"glci: {loss.stream} cannot be written ({loss.reason}); training goes on, see `glci status`")
