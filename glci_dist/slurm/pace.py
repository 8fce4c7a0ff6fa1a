"""How fast a run's attempts trained, as its status and what is reckoned of its next one tell it."""

from __future__ import annotations

from glci_dist.runs.ledger import AttemptAccount
from glci_dist.training.phases import Schedule


def seconds_a_pixel(attempt: AttemptAccount, schedule: Schedule) -> float | None:
    """Seconds of an attempt's steps, saves not counted, per pixel of their photos; None if ``schedule`` has none."""
    end = min(attempt.reached, schedule.steps)
    seconds = (end - attempt.resumed_at) * attempt.seconds_a_step
    pixels = schedule.pixels(attempt.resumed_at, end)
    return seconds / pixels if seconds > 0 and pixels else None


def in_words(speed: float) -> str:
    """Photos a second: ``1,230``, ``12``, ``0.43``."""
    return f"{speed:,.0f}" if speed >= 9.5 else f"{speed:.2g}"
