"""The scalars of a step: its measurements, and values derived from its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from glci_dist.training.metric_registry import Metric, MetricRegistry, OverSteps
from glci_dist.training.step_report import StepReport


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


_DERIVED: dict[Metric, Callable[[StepReport], float | None]] = {
    Metric("phase/alpha", "weight"): lambda each: each.alpha if each.plan.is_joint else None,
    Metric("gradient_at_output/adversarial", "norm, weighted", panel="gradient at the output"): _adversarial_gradient,
    Metric("gradient_norm/completion", "norm"): lambda each: each.completion_norm,
    Metric("learning_rate/completion"): lambda each: None if each.completion_norm is None else each.plan.completion_lr,
    Metric("gradient_norm/discriminator", "norm"): lambda each: each.discriminator_norm,
    Metric("learning_rate/discriminator"): lambda each: (
        None if each.discriminator_norm is None else each.plan.discriminator_lr
    ),
    Metric("phase/number"): lambda each: each.plan.phase_number,
    Metric("time/step_seconds", "s"): _mean_seconds,
    Metric("time/slowest_rank_ratio"): lambda each: max(each.step_seconds) / _mean_seconds(each),
    Metric("time/data_share", "share"): _data_share,
    Metric("time/communication_share", "share"): _communication_share,
    Metric("time/compute_share", "share"): lambda each: max(0.0, 1 - _data_share(each) - _communication_share(each)),
    Metric("data/replaced_samples", "samples", over_steps=OverSteps.TOTAL): lambda each: float(each.replaced),
    Metric("updates/skipped", "steps", over_steps=OverSteps.TOTAL): lambda each: float(each.skipped),
}
"""Each metric's value in a report; None if the step has none."""
DERIVED_METRICS = tuple(_DERIVED)


def scalars(report: StepReport, metrics: MetricRegistry) -> Iterable[tuple[str, float]]:
    """A step's scalars by their metrics' names; only of what the step did."""
    for name, value in report.values.items():
        if metrics[name].is_shown:
            yield name, value
    for metric, derive in _DERIVED.items():
        if (found := derive(report)) is not None:
            yield metric.name, found
