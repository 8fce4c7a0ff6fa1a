"""Passes a run's scalars, texts and evaluations to a logger (rank 0)."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import torch

from glci_dist.compose import to_yaml
from glci_dist.config import Config
from glci_dist.diagnosis.states import Finding, State
from glci_dist.errors import in_a_line
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.loggers.base import Logger
from glci_dist.training.metric_registry import Metric, MetricRegistry, OverSteps
from glci_dist.training.scalars import scalars

STATES = tuple(Metric(f"doctor/{state}", "1: it holds", panel="state (docs/doctor.md)") for state in State)
"""The states of adversarial training: 1 for that of the last diagnosis."""


@dataclass(frozen=True)
class Gauge:
    """A metric that is read when scalars are written."""

    metric: Metric
    read: Callable[[], float | None]


def memory_gauges(device: torch.device) -> Iterable[Gauge]:
    """Peak memory of rank 0."""
    yield Gauge(
        Metric("memory/peak_rank0_gib", "GiB"), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    if device.type == "cuda":
        yield Gauge(Metric("memory/peak_gpu0_gib", "GiB"), lambda: torch.cuda.max_memory_allocated(device) / 2**30)


class Logging(Callback):
    """Logs scalars (means since they were last written), diagnoses, evaluations and the configuration."""

    is_display = True

    def __init__(
        self,
        logger: Logger,
        config: Config,
        metrics: MetricRegistry,
        *,
        gauges: Iterable[Gauge] = (),
        shares: Callable[[], Mapping[str, float]] = dict,
        last_finding: Callable[[], tuple[int, Finding] | None] = lambda: None,
    ) -> None:
        """``shares``: of the run's wall time, by kind. ``last_finding``: of the doctor, with its step."""
        self._logger, self._metrics, self._gauges, self._shares = logger, metrics, tuple(gauges), shares
        self._last_finding = last_finding
        self._logged: tuple[int, Finding] | None = None
        self._has_begun = False
        self._every = config.monitor.scalars_every
        self._configuration = f"```\n{to_yaml(config)}\n```"
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._totals: dict[str, float] = defaultdict(float)
        self._written, self._photos = time.perf_counter(), 0

    @property
    def name(self) -> str:
        """The logger's class, under which its errors are reported."""
        return type(self._logger).__name__

    def on_start(self, step: int) -> None:
        with self._calling():
            self._logger.begin(step, self._metrics.panels())
            self._has_begun = True
            self._logger.log_text("configuration", self._configuration, step)
            self._logger.log_text("metrics", self._metrics.table(), step)

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report = done.report
        self._photos += report.plan.batch
        for name, value in scalars(report, self._metrics):
            self._sums[name] += value
            self._counts[name] += 1
        if (report.plan.step + 1) % self._every == 0 or report.plan.ends_phase:
            self._write(report.plan.step)
            self._log_state()

    def on_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        with self._calling():
            self._logger.log_picture(name, picture, step)

    def on_evaluation(self, figures: Mapping[str, float], step: int) -> None:
        self._log_scalars({f"evaluation/{name}": value for name, value in figures.items()}, step)

    def on_rewind(self, step: int) -> None:
        self._close_logger()
        self.on_start(step)

    def close(self) -> None:
        with suppress(OSError):
            # If the doctor stopped the run, its last diagnosis came after the last scalars.
            self._log_state()
        self._close_logger()

    def _close_logger(self) -> None:
        if self._has_begun:
            self._has_begun = False
            with suppress(OSError), self._calling():
                self._logger.close()

    def _log_scalars(self, values: Mapping[str, float], step: int) -> None:
        with self._calling():
            self._logger.log_scalars(values, step)

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Whatever a logger raises is reported as a display's error, and ends nothing."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # a client of a server has errors of its own
            raise OSError(in_a_line(error)) from error

    def _write(self, step: int) -> None:
        now = time.perf_counter()
        values: dict[str, float] = {}
        for name, total in self._sums.items():
            if self._metrics[name].over_steps is OverSteps.TOTAL:
                self._totals[name] += total
                values[name] = self._totals[name]
            else:
                values[name] = total / self._counts[name]
        values["speed/images_per_second"] = self._photos / (now - self._written)
        values |= {gauge.metric.name: value for gauge in self._gauges if (value := gauge.read()) is not None}
        values |= {f"goodput/{kind}": share for kind, share in self._shares().items()}
        self._sums.clear()
        self._counts.clear()
        self._written, self._photos = now, 0
        self._log_scalars(values, step)

    def _log_state(self) -> None:
        """Log the state of the last diagnosis if it is new: scalars, and a text if the state changed."""
        found, logged = self._last_finding(), self._logged
        self._logged = found
        if found is None or found == logged:
            return
        step, finding = found
        self._log_scalars({f"doctor/{state}": float(state == finding.state) for state in State}, step)
        if logged is None or finding.state != logged[1].state:
            with self._calling():
                self._logger.log_text("doctor", finding.line, step)
