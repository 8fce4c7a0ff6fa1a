"""What a whole log says: which state the contest was in, and from when to when."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from glci_dist.diagnosis.log import Point
from glci_dist.diagnosis.states import YOUNG, Finding, State, judge, summary

_FEWEST = 3
"""Points in a window at the least, and in what it is compared with."""


@dataclass(frozen=True)
class Stretch:
    """Steps of a contest in one state."""

    first: int
    last: int
    finding: Finding
    """As it was at the stretch's end."""


def diagnose(contest: Sequence[Point], *, window: int, since: int | None = None) -> list[Stretch]:
    """The stretches of a contest, in order; a point is judged by the ``window`` steps up to it.

    ``since``: the step from which the discriminators have learned; by default the contest's first. Empty where the
    contest has fewer than twice three points: nothing can be said yet.
    """
    if len(contest) < 2 * _FEWEST:
        return []
    beginning = summary([point.scalars for point in contest[:_FEWEST]])
    found: list[Stretch] = []
    steps = [point.step for point in contest]
    for place in range(_FEWEST, len(contest)):
        point = contest[place]
        start = min(bisect_right(steps, point.step - window), place + 1 - _FEWEST)
        are_young = point.step - (contest[0].step if since is None else since) < YOUNG
        finding = judge([each.scalars for each in contest[start : place + 1]], beginning, are_young=are_young)[0]
        if found and found[-1].finding.state == finding.state:
            found[-1] = Stretch(found[-1].first, point.step, finding)
        else:
            found.append(Stretch(point.step, point.step, finding))
    return found


def verdict(stretches: Sequence[Stretch]) -> Stretch:
    """What to tell first: how the contest ended, or where that is healthy what held longest before."""
    last = stretches[-1]
    if last.finding.state != State.HEALTHY:
        return last
    ill = [each for each in stretches if each.finding.state != State.HEALTHY]
    longest = max(ill, key=lambda each: each.last - each.first, default=last)
    healthy = sum(each.last - each.first for each in stretches if each.finding.state == State.HEALTHY)
    return longest if longest.last - longest.first > healthy else last
