"""Evaluations during training. On every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from glci_dist.errors import UserError
from glci_dist.evaluation.result import brief
from glci_dist.runs.events import Evaluated, EvaluationFailed
from glci_dist.training.callbacks.base import Callback
from glci_dist.training.evaluations import Evaluations
from glci_dist.training.phases import StepPlan
from glci_dist.training.run_log import RunLog


class PeriodicEvaluation(Callback):
    """Evaluates the network on held-out photos when due, and reports the metrics."""

    def __init__(
        self,
        evaluations: Evaluations,
        network: nn.Module,
        log: RunLog,
        *,
        show: Callable[[Mapping[str, float], int], None],
    ) -> None:
        """``network``: the completion network or its moving average. ``show``: called with metrics and step."""
        self._evaluations, self._network, self._log, self._show = evaluations, network, log, show

    def after_save(self, plan: StepPlan) -> None:
        if not self._evaluations.is_due(plan):
            return
        try:
            figures = self._evaluations.run(self._network)
        except UserError as error:
            # Raised on every rank, for example for a broken held-out photo: no reason to end the run.
            self._log.event(EvaluationFailed(plan.step, str(error)))
            self._log.say(f"no evaluation after step {plan.step}: {error}; training goes on")
            return
        if not figures:
            return
        self._log.event(Evaluated(plan.step, {name: round(value, 6) for name, value in figures.items()}))
        self._log.say(f"evaluation after step {plan.step}: {brief(figures)}")
        self._show(figures, plan.step)
