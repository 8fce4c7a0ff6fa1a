"""The schedule of phases: what a step does, as a pure function of the configuration and the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from glci_dist.config import PhaseConfig


@dataclass(frozen=True)
class StepPlan:
    """A step's position in the schedule, and what it does."""

    step: int
    phase: str
    phase_number: int
    """0 for the first phase that has steps."""
    phase_step: int
    """Steps since the phase began."""
    left: float
    """Remaining share of the phase: 1 at its first step."""
    ends_phase: bool
    batch: int
    """Photos of the step, over all ranks; 0: unknown."""
    size: int
    """Side of the photos, px; 0: unknown."""
    is_joint: bool
    """Whether the phase trains both networks."""
    is_discriminators_alone: bool
    """Whether the phase trains the discriminators alone."""
    updates_completion: bool
    updates_discriminator: bool
    discriminator_update: int
    """Scheduled updates of the discriminators in the phase before this step."""
    completion_lr: float
    discriminator_lr: float
    discriminator_peak_lr: float
    """The phase's learning rate, before warm-up and schedule."""
    reconstruction: float
    """Weight of the reconstruction loss."""
    alpha: float
    """Weight of the adversarial loss."""
    balance: float
    """Ratio of the adversarial to the reconstruction gradient, which sets the weight instead of alpha; 0: alpha."""
    balance_steps: int
    """Steps of the phase over which the gradients are measured."""


class Schedule:
    """The phases of a run in order, without those of 0 steps."""

    def __init__(self, phases: Mapping[str, PhaseConfig], *, global_batch: int = 0, size: int = 0) -> None:
        """``global_batch``, ``size``: photos per step and their side of phases without their own; 0: unknown."""
        self._global_batch = global_batch
        self.size = size
        """Side of the photos of phases without their own, px; 0: unknown."""
        self._phases = [(name, phase) for name, phase in phases.items() if phase.steps]
        self.steps = sum(phase.steps for _, phase in self._phases)
        """Steps of the whole run."""

    @property
    def names(self) -> list[str]:
        """Names of the phases, by ``StepPlan.phase_number``."""
        return [name for name, _ in self._phases]

    def pixels(self, first: int = 0, end: int | None = None) -> int:
        """Pixels of the photos of the steps from ``first`` to before ``end`` (by default the last).

        A measure of work: phases with photos or batches of their own have steps that take longer or shorter.
        """
        total, start = 0, 0
        for _, phase in self._phases:
            steps = min(self.steps if end is None else end, start + phase.steps) - max(first, start)
            # An unknown number counts as 1: such a schedule still has equal steps.
            photos, side = phase.batch or self._global_batch or 1, phase.size or self.size or 1
            total += max(0, steps) * photos * side * side
            start += phase.steps
        return total

    def at(self, step: int) -> StepPlan:
        """The plan of step ``step``, 0 <= ``step`` < ``steps``; raises ``IndexError`` outside."""
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
            batch=phase.batch or self._global_batch,
            size=phase.size or self.size,
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
    """Factor on the phase's learning rates at its ``within``-th step: warm-up times schedule."""
    warm = min(1.0, (within + 1) / phase.lr_warmup) if phase.lr_warmup else 1.0
    progress = within / max(1, phase.steps - 1)
    if phase.lr_schedule == "linear":
        return warm * (phase.lr_final + (1 - phase.lr_final) * (1 - progress))
    if phase.lr_schedule == "cosine":
        return warm * (phase.lr_final + (1 - phase.lr_final) * 0.5 * (1 + math.cos(math.pi * progress)))
    return warm


def _is_due(within: int, every: int) -> bool:
    return every > 0 and within % every == every - 1
