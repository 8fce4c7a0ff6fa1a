"""Progress on the screen, and lost output (rank 0)."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from glci_dist import output
from glci_dist.runs.events import OutputLost
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.metric_registry import MetricRegistry
from glci_dist.training.phases import Schedule
from glci_dist.training.run_log import RunLog


class Progress(Callback):
    """A line with phase, step, speed and time left: a live bar on a terminal, else a line every 30 s.

    Speed is that since the phase began; the rest of the run is taken to need as many seconds a pixel.
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
        self._phase, self._said = "", time.perf_counter()
        self._begin_at(first_step)

    def _begin_at(self, step: int) -> None:
        """Measure the speed from step ``step`` on."""
        self._first, self._start = step, time.perf_counter()

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report = done.report
        plan, reached = report.plan, report.plan.step + 1
        now, changed = time.perf_counter(), report.plan.phase != self._phase
        elapsed = max(1e-9, now - self._start)
        speed = plan.batch * (reached - self._first) / elapsed
        left = self._schedule.pixels(reached) * elapsed / self._schedule.pixels(self._first, reached)
        self._phase = plan.phase
        if self._live or changed or now - self._said >= self._SECONDS or reached == self._schedule.steps:
            figures = " ".join(f"{label} {value:.4g}" for label, value in self._metrics.labelled(report.values))
            pace = f"{speed:.0f} img/s, {left / 60:.1f} min left, {figures}"
            if self._live:
                self._bar.set_description(plan.phase, refresh=False)
                self._bar.set_postfix_str(pace, refresh=False)
                self._bar.update(1)
            else:
                self._said = now
                print(f"{plan.phase}: step {reached}/{self._schedule.steps}, {pace}", flush=True)
        if plan.ends_phase:
            self._begin_at(reached)

    def on_rewind(self, step: int) -> None:
        self._begin_at(step)
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
