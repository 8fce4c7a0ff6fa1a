"""What is known of a figure that a run shows: its name, its unit, how it is reduced, the chart it stands in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class OverRanks(StrEnum):
    """How the ranks' values become one."""

    MEAN = "mean"
    SUM = "sum"
    NORM = "norm"
    """Of a gradient over the whole batch, from each rank's squared norm of its own loss's gradient."""


class OverSteps(StrEnum):
    """How the values of the steps since scalars were last written become one."""

    MEAN = "mean"
    TOTAL = "total"
    """Of all steps of the attempt so far."""


@dataclass(frozen=True)
class Metric:
    """A figure of a step; declare it beside the code that computes it."""

    name: str
    """``group/name``, as in TensorBoard."""
    unit: str = ""
    over_ranks: OverRanks = OverRanks.MEAN
    over_steps: OverSteps = OverSteps.MEAN
    panel: str = ""
    """Title of the chart that it shares with others; empty: none but its own."""
    label: str = ""
    """On the progress line; empty: it is not there."""
    is_shown: bool = True
    """False for one that others are computed from."""


class MetricRegistry:
    """The metrics of a run, in their order; the same on every rank."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        """Raises ``ValueError`` for two of one name."""
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
        """The names of the metrics of each panel."""
        panels: dict[str, list[str]] = {}
        for metric in self:
            if metric.panel:
                panels.setdefault(metric.panel, []).append(metric.name)
        return panels

    def labelled(self, values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
        """What of ``values`` the progress line shows."""
        for metric in self:
            if metric.label and metric.name in values:
                yield metric.label, values[metric.name]
