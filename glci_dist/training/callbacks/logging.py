"""Gives the loggers a run's scalars, words and evaluations (rank 0)."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from glci_dist.compose import to_yaml
from glci_dist.config import Config
from glci_dist.diagnosis.states import Finding, State
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.loggers.base import Logger
from glci_dist.training.metrics import Metric, MetricRegistry, OverSteps
from glci_dist.training.scalars import scalars

STATES = tuple(Metric(f"doctor/{state}", "1: it holds", panel="state (docs/recipes.md)") for state in State)
"""Of the GAN's training, as the doctor last judged it."""


@dataclass(frozen=True)
class Gauge:
    """A figure that is read when scalars are written."""

    metric: Metric
    read: Callable[[], float | None]


def memory_gauges(device: torch.device) -> Iterable[Gauge]:
    """Peaks of rank 0's memory."""
    yield Gauge(
        Metric("memory/peak_rank0_gib", "GiB"), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    if device.type == "cuda":
        yield Gauge(Metric("memory/peak_gpu0_gib", "GiB"), lambda: torch.cuda.max_memory_allocated(device) / 2**30)


class Logging(Callback):
    """Scalars (means since they were last written), the doctor's findings, evaluations and the configuration."""

    is_display = True

    def __init__(
        self,
        logger: Logger,
        config: Config,
        metrics: MetricRegistry,
        *,
        gauges: Iterable[Gauge] = (),
        shares: Callable[[], Mapping[str, float]] = dict,
        judged: Callable[[], tuple[int, Finding] | None] = lambda: None,
    ) -> None:
        """``shares``: of the run's wall time, by what it went into. ``judged``: the doctor's last diagnosis."""
        self._logger, self._metrics, self._gauges, self._shares = logger, metrics, tuple(gauges), shares
        self._judged = judged
        self._told: tuple[int, Finding] | None = None
        self._every, self._global_batch = config.monitor.scalars_every, config.global_batch
        self._configuration = f"```\n{to_yaml(config)}\n```"
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._totals: dict[str, float] = defaultdict(float)
        self._written, self._steps = time.perf_counter(), 0

    @property
    def name(self) -> str:
        """Of the logger, by which a failure of it is told."""
        return type(self._logger).__name__

    def on_start(self, step: int) -> None:
        self._logger.begin(step, self._metrics.panels())
        self._logger.log_text("configuration", self._configuration, step)

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report = done.report
        self._steps += 1
        for name, value in scalars(report, self._metrics):
            self._sums[name] += value
            self._counts[name] += 1
        if (report.plan.step + 1) % self._every == 0 or report.plan.ends_phase:
            self._write(report.plan.step)
            self._tell()

    def on_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._logger.log_picture(name, picture, step)

    def on_evaluation(self, figures: Mapping[str, float], step: int) -> None:
        self._logger.log_scalars({f"evaluation/{name}": value for name, value in figures.items()}, step)

    def on_rewind(self, step: int) -> None:
        self._logger.close()
        self.on_start(step)

    def close(self) -> None:
        try:
            # A run that the doctor stopped has been judged since scalars were last written.
            self._tell()
        except OSError:
            pass
        finally:
            self._logger.close()

    def _write(self, step: int) -> None:
        now = time.perf_counter()
        values: dict[str, float] = {}
        for name, total in self._sums.items():
            if self._metrics[name].over_steps is OverSteps.TOTAL:
                self._totals[name] += total
                values[name] = self._totals[name]
            else:
                values[name] = total / self._counts[name]
        values["speed/images_per_second"] = self._steps * self._global_batch / (now - self._written)
        values |= {gauge.metric.name: value for gauge in self._gauges if (value := gauge.read()) is not None}
        values |= {f"goodput/{kind}": share for kind, share in self._shares().items()}
        self._sums.clear()
        self._counts.clear()
        self._written, self._steps = now, 0
        self._logger.log_scalars(values, step)

    def _tell(self) -> None:
        """Show what the training was last judged to be in: 1 for that state, and in words where it has changed."""
        judged, told = self._judged(), self._told
        self._told = judged
        if judged is None or judged == told:
            return
        step, finding = judged
        self._logger.log_scalars({f"doctor/{state}": float(state == finding.state) for state in State}, step)
        if told is None or finding.state != told[1].state:
            self._logger.log_text("doctor", finding.line, step)
