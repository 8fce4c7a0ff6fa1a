"""The names under which a step's report is shown and judged."""

from __future__ import annotations

from collections.abc import Iterable

from glci_dist.training.heartbeat import Report


def scalars(report: Report) -> Iterable[tuple[str, float]]:
    """A step's scalars by their TensorBoard names; those of what did not happen are left out."""
    moment = report.moment
    for name, value in report.losses.items():
        if name.endswith("_accuracy"):
            yield f"accuracy/{name.removesuffix('_accuracy')}", value
        else:
            yield f"loss/{name.removesuffix('_loss')}", value
    for name, value in report.signals.items():
        yield f"contest/{name}", value
    if report.alpha is not None and moment.is_contest:
        yield "phase/alpha", report.alpha
    if report.pulls is not None and report.alpha is not None:
        yield "gradient_at_output/reconstruction", report.pulls[0]
        yield "gradient_at_output/adversarial", report.alpha * report.pulls[1]
    if report.completion_norm is not None:
        yield "gradient_norm/completion", report.completion_norm
        yield "learning_rate/completion", moment.completion_lr
    if report.discriminator_norm is not None:
        yield "gradient_norm/discriminator", report.discriminator_norm
        yield "learning_rate/discriminator", moment.discriminator_lr
    slowest = max(report.step_seconds)
    mean = sum(report.step_seconds) / len(report.step_seconds)
    data, collectives = report.data_seconds / mean, report.collective_seconds / mean
    yield "phase/number", moment.phase_number
    yield "time/step_seconds", mean
    yield "time/slowest_rank_ratio", slowest / mean
    yield "time/data_share", data
    yield "time/communication_share", collectives
    yield "time/compute_share", max(0.0, 1 - data - collectives)
