"""Watches the contest while it runs, and weakens the side that is too strong where it is told to.

What it knows is state: it travels in checkpoints, and is the same on every rank, since it comes from the heartbeat.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from glci_dist.config import DoctorConfig
from glci_dist.diagnosis.states import YOUNG_UPDATES, Finding, State, diagnose_alone, diagnose_window, ratios, summary
from glci_dist.training.phases import StepPlan

_BEGINNING = 10
"""Steps of a contest that the later ones are compared with."""
_LEAST, _MOST = 2.0**-12, 2.0**12
"""Bounds of the factors that balancing comes to."""
_JUDGED = ("loss/", "accuracy/", "contest/", "gradient_at_output/", "phase/alpha")
"""What scalars a diagnosis is made of: none that differs from one execution to the next, such as times."""
_SLOWER, _FASTER, _LIGHTER = 0.25, 2.0, 0.5
_MUCH_SLOWER = 1 / 32
"""Discriminators that overshoot are some 20 to 100 times too fast. At 10 times a good learning rate they learn poorly
without a sign of it, and spoil more; where they are too slow afterwards, that is seen."""
_MOST_RENEWALS = 2
"""How often in a run discriminators that overshoot begin anew."""
_PULL = 0.1
"""Of the reconstruction's: what an adversarial gradient that was not felt is raised to."""

ANSWERS = {
    State.DIVERGING: "diverging",
    State.COLLAPSE: "collapse",
    State.CHECKERBOARD: "checkerboard",
    State.NO_CONTEST: "no_contest",
    State.DOMINATES: "dominates",
    State.ASLEEP: "asleep",
}
"""The key of ``DoctorConfig`` that says how a state is answered."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found at a step, and what is done about it."""

    finding: Finding
    answer: str
    """``warn``, ``balance``, ``rollback``, ``stop``; empty for a contest that is healthy again."""


class Doctor:
    """Takes down the contest's scalars, names its state, and keeps what balancing came to."""

    def __init__(self, config: DoctorConfig, photos: int = 0) -> None:
        """``photos``: of a step, 0 where that is not known."""
        self._config = config
        self._photos = photos
        self._window: deque[dict[str, float]] = deque(maxlen=max(1, config.window))
        self._first: list[dict[str, float]] = []
        self._phase = -1
        self.state = State.HEALTHY
        """The contest's, as last judged."""
        self.judged: tuple[int, Finding] | None = None
        """At which step, and by what; None before a contest's first diagnosis, and after a restart until the next."""
        self._factors: dict[str, dict[str, float]] = {}
        """On the schedule's, by the number of the contest's phase: a rollback to before it must not undo them."""
        self._paused: dict[str, int] = {}
        """Until which step a side is not updated."""
        self._alone = 0
        """Until which step the discriminators, having begun anew, learn at every step, and alone."""
        self._ceiling = math.inf
        """The highest learning rate (before a phase's schedule) that the discriminators may begin a phase with."""
        self._updates = 0
        """How many the discriminators have had since they began, as far as it matters."""
        self._renewals = 0
        """How often they were to begin anew; a rollback undoes none."""
        self.is_reset_due = False
        """Whether the discriminators have to begin anew before the next step: what overshooting made of them, or of
        those that a rollback brought back, is not learned out of."""

    def adjusted(self, plan: StepPlan) -> StepPlan:
        """What the step does after what balancing has changed so far."""
        if not (plan.is_joint or plan.is_discriminators_alone):
            return plan
        factors = self.factors(plan)
        paused = {side for side, until in self._paused.items() if plan.step < until}
        is_alone = plan.step < self._alone
        return replace(
            plan,
            alpha=plan.alpha * factors["alpha"],
            balance=plan.balance * factors["alpha"],
            discriminator_lr=plan.discriminator_lr * factors["discriminator_lr"],
            updates_completion=plan.updates_completion and "completion" not in paused and not is_alone,
            updates_discriminator=(plan.updates_discriminator or is_alone) and "discriminator" not in paused,
        )

    def diagnose(self, plan: StepPlan, scalars: dict[str, float]) -> Diagnosis | None:
        """Take a step down; what it came to, where a diagnosis is due and there is something to say or to do."""
        if not self._config.window or not (plan.is_joint or plan.is_discriminators_alone):
            return None
        if plan.phase_number != self._phase:
            self._phase, self._first, self.state, self.judged = plan.phase_number, [], State.HEALTHY, None
            self._window.clear()
            self._paused = {}
        if plan.is_joint and 0 < self._alone <= plan.step and (found := self._end_alone(plan)) is not None:
            # The last step alone was passed over.
            return found
        judged = {name: value for name, value in scalars.items() if name.startswith(_JUDGED)}
        if not judged or any(plan.step < until for until in self._paused.values()):
            # A step that was passed over, or in which one side was held back, says nothing of the contest.
            return None
        if len(self._first) < _BEGINNING and "loss/reconstruction" in judged:
            self._first.append(judged)
        self._window.append(judged)
        self._updates += "loss/real" in judged
        if plan.is_joint and self._alone:
            return self._end_alone(plan) if plan.step + 1 == self._alone else None
        if len(self._window) < self._config.window or (plan.phase_step + 1) % self._config.every:
            return None
        if plan.is_discriminators_alone:
            return self._answer(diagnose_alone(list(self._window), photos=self._photos)[0], plan)
        are_young = self._updates < YOUNG_UPDATES
        finding = diagnose_window(list(self._window), summary(self._first), photos=self._photos, are_young=are_young)[0]
        return self._answer(finding, plan)

    def _end_alone(self, plan: StepPlan) -> Diagnosis | None:
        """Judge what the discriminators did alone; healthy, it says nothing of the contest that follows."""
        finding = diagnose_alone(list(self._window), photos=self._photos)[0]
        found = None if finding.state == State.HEALTHY else self._answer(finding, plan)
        self._window.clear()
        self._alone = 0
        return found

    def _answer(self, finding: Finding, plan: StepPlan) -> Diagnosis | None:
        """Take down what was found, and do what is to be done; what to say of it."""
        self.judged = plan.step, finding
        is_news, self.state = finding.state != self.state, finding.state
        if finding.state == State.HEALTHY:
            return Diagnosis(finding, "") if is_news else None
        answer = str(getattr(self._config, ANSWERS[finding.state]))
        if finding.overshoots and answer in ("balance", "rollback") and self._renewals == _MOST_RENEWALS:
            # So often that beginning anew does not help: the completion network would only wait.
            answer = "warn"
        if answer == "balance":
            self._balance(finding, plan)
        elif answer == "rollback":
            self._balance(finding, plan)
            # What is gone back to has a contest of its own, and nobody to pause.
            self._paused = {}
        if answer != "warn":
            # What was measured before the answer says nothing of what comes after it.
            self._window.clear()
        return Diagnosis(finding, answer) if is_news or answer != "warn" else None

    def train_alone(self, step: int) -> None:
        """The discriminators begin anew with ``step``, and the completion network waits for a window."""
        self._alone, self._updates, self.is_reset_due = step + self._config.window, 0, False
        self._window.clear()
        self._paused = {}

    def _balance(self, finding: Finding, plan: StepPlan) -> None:
        state, until = finding.state, plan.step + 1 + self._config.every
        if state == State.DOMINATES:
            self._multiply(plan, "discriminator_lr", _SLOWER)
            self._paused["discriminator"] = until
        elif finding.overshoots:
            self._renewals += 1
            self.is_reset_due = True
            self._multiply(plan, "discriminator_lr", _MUCH_SLOWER)
            self._ceiling = self.factors(plan)["discriminator_lr"] * plan.discriminator_peak_lr
        elif state == State.ASLEEP:
            self._multiply(plan, "discriminator_lr", _FASTER)
            self._paused["completion"] = until
        elif state == State.NO_CONTEST:
            pull = ratios(summary(self._window)).get("gradient_ratio", 0.0)
            if pull:
                self._multiply(plan, "alpha", _PULL / pull)
        else:
            self._multiply(plan, "alpha", _LIGHTER)

    def factors(self, plan: StepPlan) -> dict[str, float]:
        """What the phase's alpha and discriminator learning rate are multiplied by."""
        peak = plan.discriminator_peak_lr
        slowed = min(1.0, self._ceiling / peak) if peak else 1.0
        return {"alpha": 1.0, "discriminator_lr": slowed} | self._factors.get(str(plan.phase_number), {})

    def _multiply(self, plan: StepPlan, name: str, factor: float) -> None:
        factors = self.factors(plan)
        factors[name] = min(_MOST, max(_LEAST, factors[name] * factor))
        self._factors[str(plan.phase_number)] = factors

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint (JSON)."""
        return {
            "window": list(self._window),
            "first": list(self._first),
            "phase": self._phase,
            "state": str(self.state),
            "factors": {phase: dict(factors) for phase, factors in self._factors.items()},
            "paused": dict(self._paused),
            "alone": self._alone,
            "updates": self._updates,
            "renewals": self._renewals,
            "ceiling": self._ceiling if math.isfinite(self._ceiling) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        self._take_up(state)
        self._renewals = state.get("renewals", 0)
        ceiling = state.get("ceiling")
        self._ceiling = math.inf if ceiling is None else ceiling
        self._factors = {phase: dict(factors) for phase, factors in state["factors"].items()}
        self.is_reset_due = False

    def rewind_state_dict(self, state: Mapping[str, Any]) -> None:
        """The same but for the factors and the resets, which a rollback must not undo."""
        self._take_up(state)
        self.is_reset_due = state.get("renewals", 0) < self._renewals

    def _take_up(self, state: Mapping[str, Any]) -> None:
        """What both take up. What a checkpoint of before lacks, its run had nothing of."""
        self._window = deque(state["window"], maxlen=self._window.maxlen)
        self._first, self._phase = list(state["first"]), state["phase"]
        self.state, self._paused, self.judged = State(state["state"]), dict(state["paused"]), None
        self._alone, self._updates = state.get("alone", 0), state.get("updates", YOUNG_UPDATES)
