"""The states of a contest: how each is told from a run's scalars, what follows from it, what to change.

Everything is reckoned from scalars by their TensorBoard names, over a window of steps and against the contest's
beginning, so that a run is judged alike while it trains and afterwards from its event files.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

Scalars = Mapping[str, float]
"""One step's scalars (or their means over a few steps) by name."""


class State(StrEnum):
    """What a contest is in; the first that holds is its state, in this order: the more particular first.

    But for discriminators that are asleep because they overshoot: that is looked for before "no contest", since the
    gradient of such discriminators may vanish.
    """

    COLLAPSE = "collapse"
    CHECKERBOARD = "checkerboard"
    DIVERGING = "diverging"
    NO_CONTEST = "no contest"
    DOMINATES = "discriminator dominates"
    ASLEEP = "discriminator asleep"
    HEALTHY = "healthy"


WORSE = 1.5
"""``diverging``: the reconstruction error is so many times what it was when the contest began."""
ALIKE = 0.5
"""``collapse``: completions of different photos differ by less than this share of what they did."""
REGULAR, REGULAR_AT_ALL = 2.0, 2.0
"""``checkerboard``: the completions' energy on the lattice of the enlargements, over that of the photos, is so many
times what it was, and at least so much."""
UNFELT = 0.02
"""``no contest``: the adversarial gradient at the output is less than this share of the others'."""
SURE = 0.95
"""``discriminator dominates``: it tells both real and completed photos in more than this share of cases."""
BLIND, EVEN = 0.55, 0.1
"""``discriminator asleep``: it tells fewer than this share, and its logits of both kinds are less than this apart."""
SWINGS, NEAR = 0.4, 0.5
"""``discriminator asleep``, too: the share of real photos that it tells, less that of completed ones, has so great a
standard deviation from one update to the next, while its logits of both kinds are less than this apart: it overshoots,
and calls now nearly all real, now nearly none. (Where they are far apart its verdict may swing as much: it sees.)"""
YOUNG = 40
"""Updates before which discriminators swing, however well they learn; then it counts what they have come to."""
LEANS = 0.9
"""``discriminator asleep``, too: the shares of real and of completed photos that it tells are further apart than this:
it calls nearly all photos real, or nearly none."""
FALLS = 0.2
"""``no contest``, where no gradients are known: both sides' losses fall together, each by more than this share."""


@dataclass(frozen=True)
class Finding:
    """A state that holds, with what was measured."""

    state: State
    evidence: tuple[str, ...]
    """Figures against their limits, a clause each."""
    advice: str
    """What to change."""
    overshoots: bool = False
    """Whether discriminators that are asleep are so because they learn too fast."""

    @property
    def line(self) -> str:
        """All of it in one line."""
        return f"{self.state}: {'; '.join(self.evidence)}: {self.advice}"


_FASTER = "raise phases.*.discriminator_lr or the steps of phase 2, or make the discriminators wider"
ADVICE = {
    State.DIVERGING: "lower alpha (or phases.joint.balance) and both learning rates, and begin from phase 1's end",
    State.COLLAPSE: "lower alpha, raise the weight of the reconstruction, or add losses.feature_matching",
    State.CHECKERBOARD: "use model.completion.enlarge=resize, or lower alpha",
    State.NO_CONTEST: "raise alpha, or let phases.joint.balance find it; with alpha 0 the phase is more of phase 1",
    State.DOMINATES: "lower phases.joint.discriminator_lr, update the discriminators less often, or make it harder for "
    "them (losses.instance_noise, losses.r1, normalization=spectral)",
    State.ASLEEP: _FASTER,
    State.HEALTHY: "nothing to change",
}

_UPRIGHT = (
    f"{_FASTER}; in another program: let no gradient of the completion network's loss reach them, and show them as "
    "many real photos as completed ones"
)
_SLOWER = "lower phases.*.discriminator_lr: so fast, they learn nothing that lasts"
_FEWEST_UPDATES = 8


def judge(window: Sequence[Scalars], beginning: Scalars, *, photos: int = 0, are_young: bool = False) -> list[Finding]:
    """The states that hold over ``window``, the steps of one contest in order, the first of them its state.

    ``beginning``: the scalars of the contest's first steps (``summary`` of them). ``photos``: of a step, if known.
    ``are_young``: whether the discriminators have had fewer than ``YOUNG`` updates. What was not measured tells
    nothing. ``HEALTHY`` alone where nothing else holds.
    """
    now = summary(window)
    if broken := [name for name, value in now.items() if not math.isfinite(value)]:
        return _finding(State.DIVERGING, f"{broken[0]} is not finite")
    found = [
        *_collapse(now, beginning),
        *_checkerboard(now, beginning),
        *_diverging(now, beginning),
        *_overshooting(window, now, photos, are_young),
        *_no_contest(window, now),
        *_dominates(now),
        *_asleep(now),
    ]
    return found or [Finding(State.HEALTHY, _healthy(now), ADVICE[State.HEALTHY])]


def judge_alone(window: Sequence[Scalars], *, photos: int = 0) -> list[Finding]:
    """The state of discriminators that are trained alone, which only not learning can go wrong with."""
    now = summary(window)
    if broken := [name for name, value in now.items() if not math.isfinite(value)]:
        return _finding(State.DIVERGING, f"{broken[0]} is not finite")
    return _overshooting(window, now, photos, are_young=True) or [
        Finding(State.HEALTHY, _healthy(now), ADVICE[State.HEALTHY])
    ]


def summary(steps: Sequence[Scalars]) -> dict[str, float]:
    """The median of each scalar over steps that have it."""
    names = {name for each in steps for name in each}
    return {name: statistics.median(each[name] for each in steps if name in each) for name in names}


def ratios(now: Scalars) -> dict[str, float]:
    """What the limits are compared with, by name, as far as it was measured."""
    pairs = {
        "diversity": ("contest/diversity", "contest/diversity_of_photos"),
        "lattice": ("contest/lattice", "contest/lattice_of_photos"),
        "pull": ("gradient_at_output/adversarial", "gradient_at_output/reconstruction"),
    }
    return {
        name: now[above] / now[below]
        for name, (above, below) in pairs.items()
        if above in now and now.get(below, 0) > 0
    }


def _finding(state: State, *evidence: str) -> list[Finding]:
    return [Finding(state, evidence, ADVICE[state])]


def _diverging(now: Scalars, beginning: Scalars) -> list[Finding]:
    name = "loss/reconstruction"
    if name in now and beginning.get(name, 0) > 0 and now[name] > WORSE * beginning[name]:
        times = now[name] / beginning[name]
        return _finding(
            State.DIVERGING, f"the reconstruction error is {times:.2f} times the contest's first (limit {WORSE})"
        )
    return []


def _collapse(now: Scalars, beginning: Scalars) -> list[Finding]:
    here, first = ratios(now).get("diversity"), ratios(beginning).get("diversity")
    if here is None or first is None or here >= ALIKE * first:
        return []
    return _finding(
        State.COLLAPSE,
        f"completions differ {here:.2f} times as much as their photos, at the contest's beginning {first:.2f} "
        f"(limit {ALIKE} of that)",
    )


def _checkerboard(now: Scalars, beginning: Scalars) -> list[Finding]:
    here, first = ratios(now).get("lattice"), ratios(beginning).get("lattice")
    if here is None or first is None or here < REGULAR_AT_ALL or here < REGULAR * first:
        return []
    return _finding(
        State.CHECKERBOARD,
        f"the completions' pattern on the lattice of the enlargements is {here:.1f} times the photos', at the "
        f"contest's beginning {first:.1f} (limits {REGULAR} times that, and {REGULAR_AT_ALL})",
    )


def _no_contest(window: Sequence[Scalars], now: Scalars) -> list[Finding]:
    if now.get("phase/alpha") == 0:
        return _finding(State.NO_CONTEST, "the adversarial loss has weight 0")
    pull = ratios(now).get("pull")
    if pull is not None:
        if pull >= UNFELT:
            return []
        return _finding(
            State.NO_CONTEST,
            f"the adversarial gradient that reaches the completion network is {pull:.2g} of the reconstruction's "
            f"(limit {UNFELT})",
        )
    trends = {name: trend(window, name) for name in ("loss/adversarial", "loss/real", "loss/completed")}
    if all(change is not None and change < -FALLS for change in trends.values()):
        told = ", ".join(f"{name} by {-change:.0%}" for name, change in trends.items() if change is not None)
        return _finding(State.NO_CONTEST, f"both sides' losses fall together: {told} (limit {FALLS:.0%})")
    return []


def _dominates(now: Scalars) -> list[Finding]:
    told = [now.get("accuracy/real", 0.0), now.get("accuracy/completed", 0.0)]
    if min(told) <= SURE:
        return []
    return _finding(
        State.DOMINATES,
        f"the discriminators tell {told[0]:.0%} of real and {told[1]:.0%} of completed photos "
        f"(limit {SURE:.0%} of both)",
    )


def _overshooting(window: Sequence[Scalars], now: Scalars, photos: int, are_young: bool) -> list[Finding]:
    """Discriminators whose verdict swings, while their logits of both kinds stay near.

    Young ones swing too, but from even logits on they only come to know more, fast or slowly. Of those that overshoot
    some update turned the logits upside down, and they are near still in the window's last third.
    """
    margin, near = now.get("contest/margin"), NEAR
    if are_young:
        margins = [each["contest/margin"] for each in window if "contest/margin" in each]
        if not margins or min(margins) > -EVEN:
            return []
        margin, near = statistics.median(margins[-(len(margins) // 3) :]), EVEN
    # The verdicts of discriminators that tell nothing vary by half of this from one small batch to the next.
    limit = max(SWINGS, math.sqrt(2 / photos)) if photos else SWINGS
    pairs = [(each.get("accuracy/real"), each.get("accuracy/completed")) for each in window]
    leanings = [real - completed for real, completed in pairs if real is not None and completed is not None]
    if margin is None or abs(margin) >= near or len(leanings) < _FEWEST_UPDATES:
        return []
    swings = statistics.stdev(leanings)
    if swings <= limit:
        return []
    evidence = (
        "the discriminators overshoot: the share that they tell of real photos less that of completed ones "
        f"varies by {swings:.2f} from one update to the next (limit {limit:.2g}), and their logits of both are "
        f"{abs(margin):.2g} apart (limit {near})"
    )
    return [Finding(State.ASLEEP, (evidence,), _SLOWER, overshoots=True)]


def _asleep(now: Scalars) -> list[Finding]:
    told = [now[name] for name in ("accuracy/real", "accuracy/completed") if name in now]
    if len(told) == 2 and abs(told[0] - told[1]) > LEANS:
        evidence = (
            f"the discriminators call {'nearly all' if told[0] > told[1] else 'hardly any'} photos real: they tell "
            f"{told[0]:.0%} of real and {told[1]:.0%} of completed ones (limit {LEANS:.0%} apart)"
        )
        return [Finding(State.ASLEEP, (evidence,), _UPRIGHT)]
    margin = now.get("contest/margin")
    if len(told) < 2 or sum(told) / 2 >= BLIND or (margin is not None and abs(margin) >= EVEN):
        return []
    apart = f", their logits of both are {abs(margin):.2g} apart (limit {EVEN})" if margin is not None else ""
    return _finding(State.ASLEEP, f"the discriminators tell {sum(told) / 2:.0%} of photos (limit {BLIND:.0%}){apart}")


def _healthy(now: Scalars) -> tuple[str, ...]:
    told = []
    if "accuracy/real" in now and "accuracy/completed" in now:
        told.append(f"the discriminators tell {now['accuracy/real']:.0%} and {now['accuracy/completed']:.0%}")
    called = {
        "pull": "the adversarial gradient is {:.2g} of the reconstruction's",
        "diversity": "completions differ {:.2f} times as much as their photos",
        "lattice": "their pattern on the enlargements' lattice is {:.2g} times the photos'",
    }
    known = ratios(now)
    told += [words.format(known[name]) for name, words in called.items() if name in known]
    return tuple(told)


def trend(window: Sequence[Scalars], name: str) -> float | None:
    """By which share a scalar's median rose from the window's first third to its last; None where it is unknown."""
    third = len(window) // 3
    first, last = (
        [each[name] for each in part if name in each] for part in (window[:third], window[len(window) - third :])
    )
    if not first or not last:
        return None
    start = statistics.median(first)
    return (statistics.median(last) - start) / abs(start) if start else None
