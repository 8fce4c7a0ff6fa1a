"""Weighs the adversarial term so that both gradients reach the completion network with norms of one order.

GLCIC, section 3.4: at the start of the third phase the norms of the two gradients are to be of the same order. They
are measured at the network's output over the phase's first steps; what is measured is state, which travels in
checkpoints, and the same on every rank, since it comes from the heartbeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glci_dist.training.phases import StepPlan


class Balance:
    """The adversarial term's weight at each step."""

    def __init__(self) -> None:
        self._phase = -1
        """Number of the phase that was measured."""
        self._steps = 0
        self._reconstruction = self._adversarial = 0.0
        """Sums of the norms over those steps."""

    def alpha(self, plan: StepPlan) -> float:
        """The weight at a step: the phase's alpha, or with ``balance`` what has been measured before the step.

        Before anything was measured it is 0: the phase's first step only measures.
        """
        if not plan.balance:
            return plan.alpha
        if self._phase != plan.phase_number or not self._adversarial:
            return 0.0
        return plan.balance * self._reconstruction / self._adversarial

    def measure(self, plan: StepPlan, reconstruction: float, adversarial: float) -> None:
        """Take down the norms of a step's gradients at the output, before their weights."""
        measured = self._steps if self._phase == plan.phase_number else 0
        if not plan.balance or measured >= plan.balance_steps:
            return
        if self._phase != plan.phase_number:
            self._phase, self._steps, self._reconstruction, self._adversarial = plan.phase_number, 0, 0.0, 0.0
        self._steps += 1
        self._reconstruction += reconstruction
        self._adversarial += adversarial

    def forget(self) -> None:
        """Measure again from the next step on: the discriminators are others now."""
        self._phase = -1

    def follow_phase(self, before: Sequence[str], now: Sequence[str]) -> None:
        """Keep what was measured with its phase, whose number may be another ``now``; the names of the phases."""
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
        """Take up what ``state_dict`` gave."""
        self._phase, self._steps = state["phase"], state["steps"]
        self._reconstruction, self._adversarial = state["reconstruction"], state["adversarial"]
