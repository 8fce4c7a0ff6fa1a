"""Progress on the screen, and lost output (rank 0)."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from glci_dist import output
from glci_dist.runs.events import OutputLost
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.metric_registry import MetricRegistry
from glci_dist.training.run_log import RunLog


class Progress(Callback):
    """A line with phase, step, speed and time left: a live bar on a terminal, else a line every 30 s."""

    is_display = True
    _SECONDS = 30.0

    def __init__(self, metrics: MetricRegistry, *, first_step: int, steps: int) -> None:
        self._metrics = metrics
        self._first, self._steps, self._photos = first_step, steps, 0
        self._live = sys.stderr.isatty()
        self._bar = tqdm(initial=first_step, total=steps, unit="step", dynamic_ncols=True, disable=not self._live)
        self._start = self._said = time.perf_counter()
        self._phase = ""

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report = done.report
        run = report.plan.step + 1 - self._first
        elapsed = time.perf_counter() - self._start
        self._photos += report.plan.batch
        speed = self._photos / elapsed
        figures = " ".join(f"{label} {value:.4g}" for label, value in self._metrics.labelled(report.values))
        if self._live:
            self._bar.set_description(report.plan.phase, refresh=False)
            self._bar.set_postfix_str(f"{speed:.0f} img/s, {figures}", refresh=False)
            self._bar.update(1)
            return
        changed = report.plan.phase != self._phase
        if changed or time.perf_counter() - self._said >= self._SECONDS or report.plan.step + 1 == self._steps:
            self._phase, self._said = report.plan.phase, time.perf_counter()
            left = elapsed / run * (self._steps - self._first - run)
            print(
                f"{report.plan.phase}: step {report.plan.step + 1}/{self._steps}, {speed:.0f} img/s, "
                f"{left / 60:.1f} min left, {figures}",
                flush=True,
            )

    def on_rewind(self, step: int) -> None:
        self._first, self._start, self._photos = step, time.perf_counter(), 0
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
