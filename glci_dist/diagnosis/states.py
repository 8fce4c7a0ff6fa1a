"""The states of adversarial training (a *contest*): how each is found from a run's scalars, and what to change.

Everything is computed from scalars by their TensorBoard names, over a window of steps and relative to the contest's
first steps, so that a run is diagnosed alike during training and from its event files.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

Scalars = Mapping[str, float]
"""One step's scalars (or means over a few steps) by name."""


class State(StrEnum):
    """A contest's state: the first that holds, in this order, the more specific first.

    One exception: whether discriminators are asleep because they overshoot is checked before "no contest", as their
    gradient may vanish.
    """

    COLLAPSE = "collapse"
    CHECKERBOARD = "checkerboard"
    DIVERGING = "diverging"
    NO_CONTEST = "no contest"
    DOMINATES = "discriminator dominates"
    ASLEEP = "discriminator asleep"
    HEALTHY = "healthy"


DIVERGING_GROWTH = 1.5
"""``diverging``: the reconstruction error is more than this many times its first value."""
COLLAPSE_SHARE = 0.5
"""``collapse``: the difference between completions of different photos is below this share of its first value."""
CHECKERBOARD_GROWTH, CHECKERBOARD_RATIO = 2.0, 2.0
"""``checkerboard``: the completions' checkerboard energy over the photos' is at least this many times its first value,
and at least this high."""
NO_CONTEST_RATIO = 0.02
"""``no contest``: the adversarial gradient at the output is below this share of the reconstruction gradient."""
DOMINATING_ACCURACY = 0.95
"""``discriminator dominates``: its accuracies on real and on completed photos are both above this."""
ASLEEP_ACCURACY, ASLEEP_GAP = 0.55, 0.1
"""``discriminator asleep``: its accuracy and its logit gap are below these."""
OVERSHOOT_DEVIATION, OVERSHOOT_GAP = 0.4, 0.5
"""``discriminator asleep`` because it overshoots: its accuracy on real minus that on completed photos has a standard
deviation above the first from one update to the next, as it calls now nearly all photos real, now nearly none, while
its logit gap is below the second. (With a large gap the accuracies may vary as much: it has learned.)"""
YOUNG_UPDATES = 40
"""Updates before which discriminators oscillate, however well they learn; see ``_overshooting``."""
ONE_SIDED_GAP = 0.9
"""``discriminator asleep``: its accuracies on real and on completed photos are further apart than this, as it calls
nearly all photos real, or nearly none."""
FALLING_SHARE = 0.2
"""``no contest``, if gradients are unknown: the losses of both networks fall together, each by more than this share."""


@dataclass(frozen=True)
class Finding:
    """A state that holds, with the evidence."""

    state: State
    evidence: tuple[str, ...]
    """Measured values with their limits, a clause each."""
    advice: str
    """What to change."""
    overshoots: bool = False
    """Whether the discriminators are asleep because they learn too fast."""

    @property
    def line(self) -> str:
        """State, evidence and advice in one line."""
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


def diagnose_window(
    window: Sequence[Scalars], beginning: Scalars | None, *, photos: int = 0, are_young: bool = False
) -> list[Finding]:
    """The states that hold over ``window``, consecutive steps of one contest; the first is its state.

    ``beginning``: ``summary`` of the contest's first steps (None: see ``diagnose_alone``). ``photos``: photos per step,
    if known. ``are_young``: whether the discriminators have had fewer than ``YOUNG_UPDATES`` updates. A state whose
    scalars are missing does not hold. ``HEALTHY`` alone if no other holds.
    """
    now = summary(window)
    if broken := [name for name, value in now.items() if not math.isfinite(value)]:
        return [Finding(State.DIVERGING, (f"{broken[0]} is not finite",), ADVICE[State.DIVERGING])]
    found = [_overshooting(window, now, photos, are_young)]
    if beginning is not None:
        found = [
            _finding(State.COLLAPSE, _collapse(now, beginning)),
            _finding(State.CHECKERBOARD, _checkerboard(now, beginning)),
            _finding(State.DIVERGING, _diverging(now, beginning)),
            *found,
            _finding(State.NO_CONTEST, _no_contest(window, now)),
            _finding(State.DOMINATES, _dominates(now)),
            _asleep(now),
        ]
    return [each for each in found if each] or [Finding(State.HEALTHY, _healthy(now), ADVICE[State.HEALTHY])]


def diagnose_alone(window: Sequence[Scalars], *, photos: int = 0) -> list[Finding]:
    """The state of discriminators that are trained alone: only overshooting and non-finite scalars are checked."""
    return diagnose_window(window, None, photos=photos, are_young=True)


def summary(steps: Sequence[Scalars]) -> dict[str, float]:
    """The median of each scalar, over the steps that have it."""
    names = {name for each in steps for name in each}
    return {name: statistics.median(each[name] for each in steps if name in each) for name in names}


def ratios(now: Scalars) -> dict[str, float]:
    """The ratios that are compared with limits, by name, as far as their scalars are known."""
    pairs = {
        "diversity": ("contest/diversity", "contest/diversity_of_photos"),
        "checkerboard": ("contest/lattice", "contest/lattice_of_photos"),
        "gradient_ratio": ("gradient_at_output/adversarial", "gradient_at_output/reconstruction"),
    }
    return {
        name: now[above] / now[below]
        for name, (above, below) in pairs.items()
        if above in now and now.get(below, 0) > 0
    }


def _finding(state: State, evidence: str) -> Finding | None:
    return Finding(state, (evidence,), ADVICE[state]) if evidence else None


def _diverging(now: Scalars, beginning: Scalars) -> str:
    here, first = now.get("loss/reconstruction"), beginning.get("loss/reconstruction", 0)
    if here is None or not (first > 0 and here > DIVERGING_GROWTH * first):
        return ""
    return f"reconstruction error {here / first:.2f} times its value at the phase's start (limit {DIVERGING_GROWTH})"


def _collapse(now: Scalars, beginning: Scalars) -> str:
    here, first = ratios(now).get("diversity"), ratios(beginning).get("diversity")
    if here is None or first is None or here >= COLLAPSE_SHARE * first:
        return ""
    return (
        f"difference between completions {here:.2f} of that between photos, {first:.2f} at the phase's start "
        f"(limit {COLLAPSE_SHARE} of that)"
    )


def _checkerboard(now: Scalars, beginning: Scalars) -> str:
    here, first = ratios(now).get("checkerboard"), ratios(beginning).get("checkerboard")
    if here is None or first is None or here < CHECKERBOARD_RATIO or here < CHECKERBOARD_GROWTH * first:
        return ""
    return (
        f"checkerboard energy of the upsampling layers {here:.1f} times the photos', {first:.1f} at the phase's "
        f"start (limits {CHECKERBOARD_GROWTH} times that, and {CHECKERBOARD_RATIO})"
    )


def _no_contest(window: Sequence[Scalars], now: Scalars) -> str:
    if now.get("phase/alpha") == 0:
        return "the adversarial loss has weight 0"
    ratio = ratios(now).get("gradient_ratio")
    if ratio is not None:
        told = (
            f"adversarial gradient at the output {ratio:.2g} of the reconstruction gradient (limit {NO_CONTEST_RATIO})"
        )
        return told if ratio < NO_CONTEST_RATIO else ""
    trends = {name: trend(window, name) for name in ("loss/adversarial", "loss/real", "loss/completed")}
    falls = [f"{name} by {-change:.0%}" for name, change in trends.items() if change and change < -FALLING_SHARE]
    if len(falls) < len(trends):
        return ""
    return f"the losses of both networks fall together: {', '.join(falls)} (limit {FALLING_SHARE:.0%})"


def _dominates(now: Scalars) -> str:
    real, completed = now.get("accuracy/real", 0.0), now.get("accuracy/completed", 0.0)
    if min(real, completed) <= DOMINATING_ACCURACY:
        return ""
    return (
        f"discriminator accuracy: real {real:.0%}, completed {completed:.0%} (limit {DOMINATING_ACCURACY:.0%} of both)"
    )


def _overshooting(window: Sequence[Scalars], now: Scalars, photos: int, are_young: bool) -> Finding | None:
    """Discriminators whose accuracies oscillate while their logit gap stays small.

    Young ones oscillate too, but their gap only grows from 0, fast or slowly. Those that overshoot have had a negative
    gap after some update, and still have a small one in the window's last third.
    """
    gap, near = now.get("contest/margin"), OVERSHOOT_GAP
    if are_young:
        gaps = [each["contest/margin"] for each in window if "contest/margin" in each]
        if not gaps or min(gaps) > -ASLEEP_GAP:
            return None
        gap, near = statistics.median(gaps[-(len(gaps) // 3) :]), ASLEEP_GAP
    # Twice the deviation that guessing gives from one small batch to the next.
    limit = max(OVERSHOOT_DEVIATION, math.sqrt(2 / photos)) if photos else OVERSHOOT_DEVIATION
    pairs = [(each.get("accuracy/real"), each.get("accuracy/completed")) for each in window]
    found = [real - completed for real, completed in pairs if real is not None and completed is not None]
    differences = [difference for difference in found if math.isfinite(difference)]
    if gap is None or abs(gap) >= near or len(differences) < _FEWEST_UPDATES:
        return None
    deviation = statistics.stdev(differences)
    if deviation <= limit:
        return None
    evidence = (
        "the discriminators overshoot: their accuracy on real minus that on completed photos has a standard deviation "
        f"of {deviation:.2f} from one update to the next (limit {limit:.2g}), logit gap {abs(gap):.2g} (limit {near})"
    )
    return Finding(State.ASLEEP, (evidence,), _SLOWER, overshoots=True)


def _asleep(now: Scalars) -> Finding | None:
    told = [now[name] for name in ("accuracy/real", "accuracy/completed") if name in now]
    if len(told) == 2 and abs(told[0] - told[1]) > ONE_SIDED_GAP:
        evidence = (
            f"the discriminators call {'nearly all' if told[0] > told[1] else 'hardly any'} photos real: accuracy: "
            f"real {told[0]:.0%}, completed {told[1]:.0%} (limit {ONE_SIDED_GAP:.0%} apart)"
        )
        return Finding(State.ASLEEP, (evidence,), _UPRIGHT)
    gap = now.get("contest/margin")
    if len(told) < 2 or sum(told) / 2 >= ASLEEP_ACCURACY or (gap is not None and abs(gap) >= ASLEEP_GAP):
        return None
    apart = f", logit gap {abs(gap):.2g} (limit {ASLEEP_GAP})" if gap is not None else ""
    return _finding(State.ASLEEP, f"discriminator accuracy {sum(told) / 2:.0%} (limit {ASLEEP_ACCURACY:.0%}){apart}")


def _healthy(now: Scalars) -> tuple[str, ...]:
    known = {**now, **ratios(now)}
    told = {
        ("accuracy/real", "accuracy/completed"): "discriminator accuracy: real {:.0%}, completed {:.0%}",
        ("gradient_ratio",): "adversarial gradient {:.2g} of the reconstruction gradient",
        ("diversity",): "difference between completions {:.2f} of that between photos",
        ("checkerboard",): "checkerboard energy of the upsampling layers {:.2g} times the photos'",
    }
    return tuple(
        words.format(*(known[name] for name in names)) for names, words in told.items() if known.keys() >= set(names)
    )


def trend(window: Sequence[Scalars], name: str) -> float | None:
    """The relative change of a scalar's median from the window's first third to its last; None: unknown."""
    third = len(window) // 3
    first, last = (
        [each[name] for each in part if name in each] for part in (window[:third], window[len(window) - third :])
    )
    if not first or not last:
        return None
    start = statistics.median(first)
    return (statistics.median(last) - start) / abs(start) if start else None
