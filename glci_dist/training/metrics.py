"""Declarations of metrics: name, unit, reduction over ranks and steps, chart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class OverRanks(StrEnum):
    """Reduction over ranks."""

    MEAN = "mean"
    SUM = "sum"
    NORM = "norm"
    """Norm of a gradient over the whole batch; each rank gives the squared norm of its own loss's gradient."""


class OverSteps(StrEnum):
    """Reduction over the steps since scalars were last written."""

    MEAN = "mean"
    TOTAL = "total"
    """Sum over all steps of the attempt so far."""


@dataclass(frozen=True)
class Metric:
    """A metric of a step; declare it next to the code that computes it."""

    name: str
    """``group/name``, as in TensorBoard."""
    unit: str = ""
    over_ranks: OverRanks = OverRanks.MEAN
    over_steps: OverSteps = OverSteps.MEAN
    panel: str = ""
    """Title of a chart shared with other metrics; empty: a chart of its own."""
    label: str = ""
    """Label on the progress line; empty: not shown there."""
    is_shown: bool = True
    """False if it is only used to compute other metrics."""


class MetricRegistry:
    """The metrics of a run, in order; the same on every rank."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        """Raises ``ValueError`` if two have the same name."""
        self._by_name: dict[str, Metric] = {}
        for metric in metrics:
            if metric.name in self._by_name:
                raise ValueError(f"two metrics have the name {metric.name}")
            self._by_name[metric.name] = metric

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Metric:
        return self._by_name[name]

    def panels(self) -> dict[str, list[str]]:
        """The metrics' names by panel."""
        panels: dict[str, list[str]] = {}
        for metric in self:
            if metric.panel:
                panels.setdefault(metric.panel, []).append(metric.name)
        return panels

    def labelled(self, values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
        """Label and value of those of ``values`` that the progress line shows."""
        for metric in self:
            if metric.label and metric.name in values:
                yield metric.label, values[metric.name]
