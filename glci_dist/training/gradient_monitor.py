"""Judges each update's gradient by those before it, and keeps account of the steps that a run passes over.

What it remembers travels in the checkpoints: it is part of what the next steps are made of.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glci_dist.config import EngineConfig
from glci_dist.training.gan_step import Limits, Measures


@dataclass(frozen=True)
class RejectedUpdate:
    """Updates of a step that were not applied, and the configured answer."""

    sides: tuple[str, ...]
    """``completion``, ``discriminator``."""
    kind: str
    """``not-finite`` or ``spike``."""
    answer: str
    """``skip``, ``stop`` or ``rollback``."""
    norms: tuple[float, ...]
    limits: tuple[float, ...]


class GradientMonitor:
    """The same on every rank, because averaged gradients are."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._norms: dict[str, deque[float]] = {
            side: deque(maxlen=config.spike_window) for side in ("completion", "discriminator")
        }
        self.skips = 0
        """Steps in a row, up to now, in which an update was not applied."""
        self.skipped_steps: list[int] = []
        """Steps that are left out of the run, after rollbacks."""
        self.samples = self.replaced = 0
        """Samples of the run so far, and those of them that did not decode."""
        self._rollbacks, self._back_to = 0, -1

    def may_go_back(self, to: int) -> bool:
        """Whether the run may go back to the checkpoint of step ``to``, which the next rollback goes to."""
        return to != self._back_to or self._rollbacks < self._config.rollbacks

    def went_back(self, to: int) -> None:
        """Count a rollback; what counts is how often in a row it was to the same checkpoint."""
        self._rollbacks = self._rollbacks + 1 if to == self._back_to else 1
        self._back_to = to

    def limits(self) -> Limits:
        """The gradient norms beyond which the next updates are not applied."""
        return Limits(self._limit("completion"), self._limit("discriminator"))

    def judge(self, measures: Measures, limits: Limits) -> RejectedUpdate | None:
        """What was wrong with a step's updates, if anything; remembers the norms of those that were applied."""
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

    def forget(self, side: str) -> None:
        """Judge a network that began anew by its own gradients alone."""
        self._norms[side].clear()

    def skip(self, step: int, *, since: int) -> range:
        """Leave ``step`` out of the run, and up to ``engine.pass_over`` - 1 before it, not before ``since``."""
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
        """Take up what ``state_dict`` gave; what is passed over stays so, also where the run goes back."""
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
