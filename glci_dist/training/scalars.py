"""The scalars of a step: its measurements, and values derived from its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from glci_dist.training.metrics import Metric, MetricRegistry, OverSteps
from glci_dist.training.step_report import StepReport


@dataclass(frozen=True)
class _Derived:
    metric: Metric
    value: Callable[[StepReport], float | None]
    """None if the step has no such value."""


def _mean_seconds(report: StepReport) -> float:
    return sum(report.step_seconds) / len(report.step_seconds)


def _adversarial_gradient(report: StepReport) -> float | None:
    if report.gradients_at_output is None or report.alpha is None:
        return None
    return report.alpha * report.gradients_at_output[1]


def _data_share(report: StepReport) -> float:
    return report.data_seconds / _mean_seconds(report)


def _communication_share(report: StepReport) -> float:
    return report.collective_seconds / _mean_seconds(report)


_DERIVED = (
    _Derived(Metric("phase/alpha", "weight"), lambda each: each.alpha if each.plan.is_joint else None),
    _Derived(
        Metric("gradient_at_output/adversarial", "norm, weighted", panel="gradient at the output"),
        _adversarial_gradient,
    ),
    _Derived(Metric("gradient_norm/completion", "norm"), lambda each: each.completion_norm),
    _Derived(
        Metric("learning_rate/completion"),
        lambda each: None if each.completion_norm is None else each.plan.completion_lr,
    ),
    _Derived(Metric("gradient_norm/discriminator", "norm"), lambda each: each.discriminator_norm),
    _Derived(
        Metric("learning_rate/discriminator"),
        lambda each: None if each.discriminator_norm is None else each.plan.discriminator_lr,
    ),
    _Derived(Metric("phase/number"), lambda each: each.plan.phase_number),
    _Derived(Metric("time/step_seconds", "s"), _mean_seconds),
    _Derived(Metric("time/slowest_rank_ratio"), lambda each: max(each.step_seconds) / _mean_seconds(each)),
    _Derived(Metric("time/data_share", "share"), _data_share),
    _Derived(Metric("time/communication_share", "share"), _communication_share),
    _Derived(
        Metric("time/compute_share", "share"),
        lambda each: max(0.0, 1 - _data_share(each) - _communication_share(each)),
    ),
    _Derived(Metric("data/replaced_samples", "samples", over_steps=OverSteps.TOTAL), lambda each: float(each.replaced)),
    _Derived(Metric("updates/skipped", "steps", over_steps=OverSteps.TOTAL), lambda each: float(each.skipped)),
)
DERIVED_METRICS = tuple(each.metric for each in _DERIVED)


def scalars(report: StepReport, metrics: MetricRegistry) -> Iterable[tuple[str, float]]:
    """A step's scalars by their metrics' names; only of what the step did."""
    for name, value in report.values.items():
        if metrics[name].is_shown:
            yield name, value
    for derived in _DERIVED:
        found = derived.value(report)
        if found is not None:
            yield derived.metric.name, found
