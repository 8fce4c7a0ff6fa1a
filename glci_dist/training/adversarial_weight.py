"""The adversarial weight that gives both gradients at the completion network's output norms of a configured ratio.

GLCIC, section 3.4: at the start of the third phase the norms of the two gradients shall be of the same order. They
are measured over the phase's first steps. The measurement is saved in checkpoints; it is the same on every rank, since
it comes from the step report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glci_dist.training.phases import StepPlan


class AdversarialWeight:
    """The adversarial weight at each step."""

    def __init__(self) -> None:
        self._phase = -1
        """Number of the measured phase; -1: none."""
        self._steps = 0
        self._reconstruction = self._adversarial = 0.0
        """Sums of the norms over ``_steps`` steps."""

    def alpha(self, plan: StepPlan) -> float:
        """The weight at a step: the phase's alpha, or with ``balance`` the one from the measurements before the step.

        It is 0 before the first measurement: the phase's first step only measures.
        """
        if not plan.balance:
            return plan.alpha
        if self._phase != plan.phase_number or not self._adversarial:
            return 0.0
        return plan.balance * self._reconstruction / self._adversarial

    def measure(self, plan: StepPlan, reconstruction: float, adversarial: float) -> None:
        """Add the norms of a step's gradients at the output, unweighted."""
        measured = self._steps if self._phase == plan.phase_number else 0
        if not plan.balance or measured >= plan.balance_steps:
            return
        if self._phase != plan.phase_number:
            self._phase, self._steps, self._reconstruction, self._adversarial = plan.phase_number, 0, 0.0, 0.0
        self._steps += 1
        self._reconstruction += reconstruction
        self._adversarial += adversarial

    def reset(self) -> None:
        """Measure again from the next step on, as the discriminators were reset."""
        self._phase = -1

    def renumber_phase(self, before: Sequence[str], now: Sequence[str]) -> None:
        """Renumber the measured phase; ``before``, ``now``: phase names of the old and the new schedule."""
        if 0 <= self._phase < len(before):
            name = before[self._phase]
            self._phase = now.index(name) if name in now else -1

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint (JSON)."""
        return {
            "phase": self._phase,
            "steps": self._steps,
            "reconstruction": self._reconstruction,
            "adversarial": self._adversarial,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._phase, self._steps = state["phase"], state["steps"]
        self._reconstruction, self._adversarial = state["reconstruction"], state["adversarial"]
