"""Diagnoses adversarial training (the *contest*) while it runs, and weakens the stronger network if configured.

Its state is saved in checkpoints; it is the same on every rank, since it comes from the step report.
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
"""First steps of a contest, with which later ones are compared."""
_MIN_FACTOR, _MAX_FACTOR = 2.0**-12, 2.0**12
"""Bounds of the factors that balancing applies."""
_PREFIXES = ("loss/", "accuracy/", "contest/", "gradient_at_output/", "phase/alpha")
"""Prefixes of the scalars used for a diagnosis: none that differ between executions, such as times."""
_SLOWER, _FASTER, _LIGHTER = 0.25, 2.0, 0.5
_MUCH_SLOWER = 1 / 32
"""For discriminators that overshoot, whose learning rate is some 20 to 100 times too high. At 10 times a good learning
rate they would learn poorly without being detected, and do more damage; one that is too low is detected."""
_MAX_RESETS = 2
"""Maximum number of resets of the discriminators in a run."""
_GRADIENT_SHARE = 0.1
"""A negligible adversarial gradient is raised to this share of the reconstruction gradient."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found at a step, and the answer to it."""

    finding: Finding
    answer: str
    """``warn``, ``balance``, ``rollback``, ``stop``; empty if the contest is healthy again."""


class Doctor:
    """Records the contest's scalars, diagnoses its state, and keeps the factors from balancing."""

    def __init__(self, config: DoctorConfig) -> None:
        self._config = config
        self._window: deque[dict[str, float]] = deque(maxlen=max(1, config.window))
        self._first: list[dict[str, float]] = []
        self._phase = -1
        self.state = State.HEALTHY
        """The contest's state at the last diagnosis."""
        self.last_finding: tuple[int, Finding] | None = None
        """Step and finding of the last diagnosis; None before a contest's first one, and after a restart until the
        next."""
        self._factors: dict[str, dict[str, float]] = {}
        """Multipliers of the schedule's values by phase number, as a rollback to before the phase must keep them."""
        self._paused_until: dict[str, int] = {}
        """By network (``completion``, ``discriminator``): the step until which it is not updated."""
        self._alone_until = 0
        """The step until which discriminators that were reset are updated at every step, and alone; 0: not."""
        self._max_lr = math.inf
        """Upper bound of the discriminators' learning rate at the start of a phase, before its schedule."""
        self._updates = 0
        """Updates of the discriminators since their start or reset; only compared with ``YOUNG_UPDATES``."""
        self._resets = 0
        """Resets requested so far; a rollback does not decrement it."""
        self.is_reset_due = False
        """Whether the discriminators must be reset before the next step. They do not recover from overshooting, nor
        do those that a rollback loaded."""

    @property
    def is_treating(self) -> bool:
        """Whether any answer but ``warn`` is configured, or what an earlier one changed still holds."""
        answers = {getattr(self._config, state.name.lower()) for state in State if state != State.HEALTHY}
        return answers != {"warn"} or bool(self._factors or self._paused_until or self._alone_until or self._resets)

    def adjust(self, plan: StepPlan) -> StepPlan:
        """``plan`` with the changes of balancing so far."""
        if not (plan.is_joint or plan.is_discriminators_alone):
            return plan
        factors = self.factors(plan)
        paused = {side for side, until in self._paused_until.items() if plan.step < until}
        is_alone = plan.step < self._alone_until
        return replace(
            plan,
            alpha=plan.alpha * factors["alpha"],
            balance=plan.balance * factors["alpha"],
            discriminator_lr=plan.discriminator_lr * factors["discriminator_lr"],
            updates_completion=plan.updates_completion and "completion" not in paused and not is_alone,
            updates_discriminator=(plan.updates_discriminator or is_alone) and "discriminator" not in paused,
        )

    def diagnose(self, plan: StepPlan, scalars: dict[str, float]) -> Diagnosis | None:
        """Record a step; returns a diagnosis if one is due and there is something to report or to do."""
        if not self._config.window or not (plan.is_joint or plan.is_discriminators_alone):
            return None
        if plan.phase_number != self._phase:
            self._phase, self._first, self.state, self.last_finding = plan.phase_number, [], State.HEALTHY, None
            self._window.clear()
            self._paused_until = {}
        if plan.is_joint and 0 < self._alone_until <= plan.step and (found := self._end_alone(plan)) is not None:
            # The last of the steps alone was skipped.
            return found
        used = {name: value for name, value in scalars.items() if name.startswith(_PREFIXES)}
        if not used or any(plan.step < until for until in self._paused_until.values()):
            # Steps that were skipped, or in which a network was paused, do not show the contest's state.
            return None
        if len(self._first) < _BEGINNING and "loss/reconstruction" in used:
            self._first.append(used)
        self._window.append(used)
        self._updates += "loss/real" in used
        if plan.is_joint and self._alone_until:
            return self._end_alone(plan) if plan.step + 1 == self._alone_until else None
        if len(self._window) < self._config.window or (plan.phase_step + 1) % self._config.every:
            return None
        if plan.is_discriminators_alone:
            return self._answer(diagnose_alone(list(self._window), photos=plan.batch)[0], plan)
        are_young = self._updates < YOUNG_UPDATES
        finding = diagnose_window(list(self._window), summary(self._first), photos=plan.batch, are_young=are_young)[0]
        return self._answer(finding, plan)

    def _end_alone(self, plan: StepPlan) -> Diagnosis | None:
        """Diagnose the steps in which the discriminators were trained alone; None if they are healthy."""
        finding = diagnose_alone(list(self._window), photos=plan.batch)[0]
        found = None if finding.state == State.HEALTHY else self._answer(finding, plan)
        self._window.clear()
        self._alone_until = 0
        return found

    def _answer(self, finding: Finding, plan: StepPlan) -> Diagnosis | None:
        """Record a finding and apply the configured answer; returns what to report."""
        self.last_finding = plan.step, finding
        is_news, self.state = finding.state != self.state, finding.state
        if finding.state == State.HEALTHY:
            return Diagnosis(finding, "") if is_news else None
        # The keys of ``doctor`` are the names of the states.
        answer = str(getattr(self._config, finding.state.name.lower()))
        if finding.overshoots and answer in ("balance", "rollback") and self._resets == _MAX_RESETS:
            # Further resets would not help, and the completion network would only wait.
            answer = "warn"
        if answer == "balance":
            self._balance(finding, plan)
        elif answer == "rollback":
            self._balance(finding, plan)
            # The checkpoint's contest needs no pause.
            self._paused_until = {}
        if answer != "warn":
            # Scalars from before the answer do not show its effect.
            self._window.clear()
        return Diagnosis(finding, answer) if is_news or answer != "warn" else None

    def train_discriminators_alone(self, step: int) -> None:
        """From ``step`` on, train the discriminators, which were reset, alone for ``doctor.window`` steps."""
        self._alone_until, self._updates, self.is_reset_due = step + self._config.window, 0, False
        self._window.clear()
        self._paused_until = {}

    def _balance(self, finding: Finding, plan: StepPlan) -> None:
        state, until = finding.state, plan.step + 1 + self._config.every
        if state == State.DOMINATES:
            self._multiply(plan, "discriminator_lr", _SLOWER)
            self._paused_until["discriminator"] = until
        elif finding.overshoots:
            self._resets += 1
            self.is_reset_due = True
            self._multiply(plan, "discriminator_lr", _MUCH_SLOWER)
            self._max_lr = self.factors(plan)["discriminator_lr"] * plan.discriminator_peak_lr
        elif state == State.ASLEEP:
            self._multiply(plan, "discriminator_lr", _FASTER)
            self._paused_until["completion"] = until
        elif state == State.NO_CONTEST:
            pull = ratios(summary(self._window)).get("gradient_ratio", 0.0)
            if pull:
                self._multiply(plan, "alpha", _GRADIENT_SHARE / pull)
        else:
            self._multiply(plan, "alpha", _LIGHTER)

    def factors(self, plan: StepPlan) -> dict[str, float]:
        """Multipliers of the phase's alpha and discriminator learning rate."""
        peak = plan.discriminator_peak_lr
        slowed = min(1.0, self._max_lr / peak) if peak else 1.0
        return {"alpha": 1.0, "discriminator_lr": slowed} | self._factors.get(str(plan.phase_number), {})

    def _multiply(self, plan: StepPlan, name: str, factor: float) -> None:
        factors = self.factors(plan)
        factors[name] = min(_MAX_FACTOR, max(_MIN_FACTOR, factors[name] * factor))
        self._factors[str(plan.phase_number)] = factors

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint (JSON)."""
        return {
            "window": list(self._window),
            "first": list(self._first),
            "phase": self._phase,
            "state": str(self.state),
            "factors": {phase: dict(factors) for phase, factors in self._factors.items()},
            "paused": dict(self._paused_until),
            "alone": self._alone_until,
            "updates": self._updates,
            "renewals": self._resets,
            "ceiling": self._max_lr if math.isfinite(self._max_lr) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._restore(state)
        self._resets = state.get("renewals", 0)
        ceiling = state.get("ceiling")
        self._max_lr = math.inf if ceiling is None else ceiling
        self._factors = {phase: dict(factors) for phase, factors in state["factors"].items()}
        self.is_reset_due = False

    def rewind_state_dict(self, state: Mapping[str, Any]) -> None:
        """As ``load_state_dict``, except for the factors and the resets, which a rollback must keep."""
        self._restore(state)
        self.is_reset_due = state.get("renewals", 0) < self._resets

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Restore what both restore; keys that an older checkpoint lacks get defaults."""
        self._window = deque(state["window"], maxlen=self._window.maxlen)
        self._first, self._phase = list(state["first"]), state["phase"]
        self.state, self._paused_until, self.last_finding = State(state["state"]), dict(state["paused"]), None
        self._alone_until, self._updates = state.get("alone", 0), state.get("updates", YOUNG_UPDATES)
