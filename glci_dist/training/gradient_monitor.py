"""Detects gradient spikes and gradients that are not finite, and records the steps that a run skips.

Its state is saved in checkpoints, as the next steps depend on it.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glci_dist.config import EngineConfig
from glci_dist.training.gan_step import GradientNormLimits, StepMeasurements


@dataclass(frozen=True)
class RejectedUpdate:
    """The updates of a step that were not applied, and the configured answer."""

    sides: tuple[str, ...]
    """``completion``, ``discriminator``."""
    kind: str
    """``not-finite`` or ``spike``."""
    answer: str
    """``skip``, ``stop`` or ``rollback``."""
    norms: tuple[float, ...]
    limits: tuple[float, ...]


class GradientMonitor:
    """The same on every rank, as averaged gradients are."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._norms: dict[str, deque[float]] = {
            side: deque(maxlen=config.spike_window) for side in ("completion", "discriminator")
        }
        self.skips = 0
        """Consecutive steps, up to now, in which an update was not applied."""
        self.skipped_steps: list[int] = []
        """Steps that are skipped after rollbacks."""
        self.samples = self.replaced = 0
        """Samples of the run so far, and how many of them did not decode."""
        self._rollbacks, self._back_to = 0, -1

    def may_roll_back(self, to: int) -> bool:
        """Whether a rollback to the checkpoint of step ``to`` is allowed."""
        return to != self._back_to or self._rollbacks < self._config.rollbacks

    def count_rollback(self, to: int) -> None:
        """Count consecutive rollbacks to the same checkpoint."""
        self._rollbacks = self._rollbacks + 1 if to == self._back_to else 1
        self._back_to = to

    def limits(self) -> GradientNormLimits:
        """The gradient norms beyond which the next updates are not applied."""
        return GradientNormLimits(self._limit("completion"), self._limit("discriminator"))

    def check(self, measures: StepMeasurements, limits: GradientNormLimits) -> RejectedUpdate | None:
        """The step's updates that were rejected, if any; records the norms of the applied ones."""
        updates = {"completion": measures.completion, "discriminator": measures.discriminator}
        bad = {side: update for side, update in updates.items() if update is not None and not update.applied}
        for side, update in updates.items():
            if update is not None and update.applied:
                self._norms[side].append(update.gradient_norm)
        if not bad:
            self.skips = 0
            return None
        self.skips += 1
        is_spike = all(update.is_finite for update in bad.values())
        return RejectedUpdate(
            sides=tuple(bad),
            kind="spike" if is_spike else "not-finite",
            answer=self._config.spike if is_spike else self._config.not_finite,
            norms=tuple(update.gradient_norm for update in bad.values()),
            limits=tuple(getattr(limits, side) for side in bad),
        )

    def reset(self, side: str) -> None:
        """Clear the norms of a network that was reset."""
        self._norms[side].clear()

    def skip(self, step: int, *, since: int) -> range:
        """Skip ``step`` and up to ``engine.pass_over`` - 1 steps before it, none before ``since``."""
        steps = range(max(since, step + 1 - self._config.pass_over), step + 1)
        self.skipped_steps = sorted({*self.skipped_steps, *steps})
        return steps

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint (JSON)."""
        return {
            "norms": {side: list(norms) for side, norms in self._norms.items()},
            "skips": self.skips,
            "passed_over": self.skipped_steps,
            "samples": self.samples,
            "replaced": self.replaced,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; skipped steps stay skipped, also after a rollback."""
        for side, norms in state["norms"].items():
            self._norms[side].clear()
            self._norms[side].extend(norms)
        self.skips, self.samples, self.replaced = state["skips"], state["samples"], state["replaced"]
        self.skipped_steps = sorted({*self.skipped_steps, *state["passed_over"]})

    def _limit(self, side: str) -> float:
        norms = self._norms[side]
        if not self._config.spike_factor or len(norms) < self._config.spike_window:
            return math.inf
        return self._config.spike_factor * statistics.median(norms)
