"""Declarations of metrics: name, unit, reduction over ranks and steps, chart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class OverRanks(StrEnum):
    """Reduction over ranks."""

    MEAN = "mean"
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

    def __post_init__(self) -> None:
        if not all(self.name.partition("/")):
            raise ValueError(f"the metric's name {self.name!r} must be group/name")
        # A reduction may be given by its name.
        object.__setattr__(self, "over_ranks", OverRanks(self.over_ranks))
        object.__setattr__(self, "over_steps", OverSteps(self.over_steps))


class MetricRegistry:
    """The metrics of a run, in order; the same on every rank."""

    def __init__(self, metrics: Iterable[Metric], *, custom: Iterable[Metric] = ()) -> None:
        """``custom``: the user's own, as well. Raises ``ValueError`` if two have the same name."""
        custom = tuple(custom)
        self._custom = {metric.name for metric in custom}
        self._by_name: dict[str, Metric] = {}
        for metric in (*metrics, *custom):
            if metric.name in self._by_name:
                raise ValueError(f"two metrics have the name {metric.name}")
            self._by_name[metric.name] = metric

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Metric:
        return self._by_name[name]

    def is_custom(self, name: str) -> bool:
        """Whether it is the user's own: such a metric changes nothing about the run."""
        return name in self._custom

    def table(self) -> str:
        """Name, unit and reductions of each shown metric, as Markdown."""
        rows = [
            f"| {each.name} | {each.unit} | {each.over_ranks} | {each.over_steps} |" for each in self if each.is_shown
        ]
        return "\n".join(["| metric | unit | over ranks | over steps |", "|---|---|---|---|", *rows])

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
