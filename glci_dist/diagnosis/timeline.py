"""Diagnosis of a whole log: which state a contest was in at which steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from glci_dist.diagnosis.states import YOUNG_UPDATES, Finding, State, diagnose_window, summary
from glci_dist.diagnosis.tensorboard_reader import Point

_FEWEST = 3
"""Minimum of points in a window; also the number of first points that it is compared with."""


@dataclass(frozen=True)
class StateSpan:
    """Consecutive steps of a contest in one state."""

    first: int
    last: int
    finding: Finding
    """At the last step."""


def diagnose(contest: Sequence[Point], *, window: int, since: int | None = None) -> list[StateSpan]:
    """The spans of a contest, in order; each point is diagnosed by the ``window`` steps up to it.

    ``since``: the step from which the discriminators were trained; by default the contest's first. Empty if the
    contest has fewer than six points.
    """
    if len(contest) < 2 * _FEWEST:
        return []
    beginning = summary([point.scalars for point in contest[:_FEWEST]])
    found: list[StateSpan] = []
    steps = [point.step for point in contest]
    for place in range(_FEWEST, len(contest)):
        point = contest[place]
        start = min(bisect_right(steps, point.step - window), place + 1 - _FEWEST)
        are_young = point.step - (contest[0].step if since is None else since) < YOUNG_UPDATES
        scalars = [each.scalars for each in contest[start : place + 1]]
        finding = diagnose_window(scalars, beginning, are_young=are_young)[0]
        if found and found[-1].finding.state == finding.state:
            found[-1] = StateSpan(found[-1].first, point.step, finding)
        else:
            found.append(StateSpan(point.step, point.step, finding))
    return found


def main_span(spans: Sequence[StateSpan]) -> StateSpan:
    """The span to report first: the last, or the longest unhealthy one if it is longer than all healthy ones."""
    last = spans[-1]
    if last.finding.state != State.HEALTHY:
        return last
    ill = [each for each in spans if each.finding.state != State.HEALTHY]
    longest = max(ill, key=lambda each: each.last - each.first, default=last)
    healthy = sum(each.last - each.first for each in spans if each.finding.state == State.HEALTHY)
    return longest if longest.last - longest.first > healthy else last
