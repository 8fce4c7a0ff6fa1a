"""The schedule of phases: what a step is, as a pure function of the configuration and the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from glci_dist.config import PhaseConfig


@dataclass(frozen=True)
class StepPlan:
    """Where a step stands in the schedule, and what it does."""

    step: int
    phase: str
    phase_number: int
    """0 for the first phase that has steps."""
    phase_step: int
    """Steps since the phase began."""
    left: float
    """Share of the phase that is left: 1 at its first step."""
    ends_phase: bool
    is_joint: bool
    """Whether the phase trains both sides."""
    is_discriminators_alone: bool
    """Whether the phase trains the discriminators alone."""
    updates_completion: bool
    updates_discriminator: bool
    discriminator_update: int
    """How many updates of the discriminators the phase has had before, by its schedule."""
    completion_lr: float
    discriminator_lr: float
    discriminator_peak_lr: float
    """The phase's, before its warm-up and schedule."""
    reconstruction: float
    """Weight of the reconstruction loss."""
    alpha: float
    """Weight of the adversarial loss."""
    balance: float
    """In place of alpha: what the adversarial gradient shall be of the reconstruction's; 0: alpha."""
    balance_steps: int
    """Steps of the phase that it is measured on."""


class Schedule:
    """The phases of a run, one after the other; those of 0 steps are left out."""

    def __init__(self, phases: Mapping[str, PhaseConfig]) -> None:
        self._phases = [(name, phase) for name, phase in phases.items() if phase.steps]
        self.steps = sum(phase.steps for _, phase in self._phases)
        """Steps of the whole run."""

    @property
    def names(self) -> list[str]:
        """Of the phases, by ``StepPlan.phase_number``."""
        return [name for name, _ in self._phases]

    def at(self, step: int) -> StepPlan:
        """What step ``step`` does, 0 <= ``step`` < ``steps``; raises ``IndexError`` outside."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} lies outside a schedule of {self.steps} steps")
        number, within = 0, step
        while within >= self._phases[number][1].steps:
            within -= self._phases[number][1].steps
            number += 1
        name, phase = self._phases[number]
        factor = learning_rate_factor(phase, within)
        return StepPlan(
            step=step,
            phase=name,
            phase_number=number,
            phase_step=within,
            left=1 - within / phase.steps,
            ends_phase=within == phase.steps - 1,
            is_joint=bool(phase.completion_every and phase.discriminator_every),
            is_discriminators_alone=bool(phase.discriminator_every and not phase.completion_every),
            updates_completion=_is_due(within, phase.completion_every),
            updates_discriminator=_is_due(within, phase.discriminator_every),
            discriminator_update=within // max(1, phase.discriminator_every),
            completion_lr=factor * phase.completion_lr,
            discriminator_lr=factor * phase.discriminator_lr,
            discriminator_peak_lr=phase.discriminator_lr,
            reconstruction=phase.reconstruction,
            alpha=phase.alpha,
            balance=phase.balance,
            balance_steps=phase.balance_steps,
        )


def learning_rate_factor(phase: PhaseConfig, within: int) -> float:
    """Share of the phase's learning rates at its ``within``-th step: warm-up times schedule."""
    warm = min(1.0, (within + 1) / phase.lr_warmup) if phase.lr_warmup else 1.0
    progress = within / max(1, phase.steps - 1)
    if phase.lr_schedule == "linear":
        return warm * (phase.lr_final + (1 - phase.lr_final) * (1 - progress))
    if phase.lr_schedule == "cosine":
        return warm * (phase.lr_final + (1 - phase.lr_final) * 0.5 * (1 + math.cos(math.pi * progress)))
    return warm


def _is_due(within: int, every: int) -> bool:
    return every > 0 and within % every == every - 1
