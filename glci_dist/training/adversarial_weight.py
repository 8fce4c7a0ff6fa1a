"""The adversarial weight that gives both gradients at the completion network's output norms of a configured ratio.

GLCIC, section 3.4: at the start of the third phase the norms of the two gradients shall be of the same order. They
are measured over the phase's first steps. The measurement is saved in checkpoints; it is the same on every rank, since
it comes from the step report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from glci_dist.training.phases import StepPlan


@dataclass
class AdversarialWeight:
    """The adversarial weight at each step."""

    phase: int = -1
    """Number of the measured phase; -1: none."""
    steps: int = 0
    reconstruction: float = 0.0
    """Sum of the norms over ``steps`` steps."""
    adversarial: float = 0.0
    """As ``reconstruction``."""

    def alpha(self, plan: StepPlan) -> float:
        """The weight at a step: the phase's alpha, or with ``balance`` the one from the measurements before the step.

        It is 0 before the first measurement: the phase's first step only measures.
        """
        if not plan.balance:
            return plan.alpha
        if self.phase != plan.phase_number or not self.adversarial:
            return 0.0
        return plan.balance * self.reconstruction / self.adversarial

    def measure(self, plan: StepPlan, reconstruction: float, adversarial: float) -> None:
        """Add the norms of a step's gradients at the output, unweighted."""
        if not plan.balance or not plan.balance_steps:
            return
        if self.phase != plan.phase_number:
            self.phase, self.steps, self.reconstruction, self.adversarial = plan.phase_number, 0, 0.0, 0.0
        if self.steps < plan.balance_steps:
            self.steps += 1
            self.reconstruction += reconstruction
            self.adversarial += adversarial

    def reset(self) -> None:
        """Measure again from the next step on, as the discriminators were reset."""
        self.phase = -1

    def renumber_phase(self, before: Sequence[str], now: Sequence[str]) -> None:
        """Renumber the measured phase; ``before``, ``now``: phase names of the old and the new schedule."""
        if 0 <= self.phase < len(before):
            name = before[self.phase]
            self.phase = now.index(name) if name in now else -1

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint (JSON)."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for each in fields(self):
            setattr(self, each.name, state[each.name])
