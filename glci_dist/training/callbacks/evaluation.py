"""Evaluations during training: the metrics that `glci evaluate` would give now. On every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from glci_dist.cluster.world import World
from glci_dist.config import Config
from glci_dist.data.index import load_index
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from glci_dist.evaluation.evaluate import evaluate
from glci_dist.evaluation.evaluate_runs import complete_with
from glci_dist.evaluation.feature_metrics import EfficientNet
from glci_dist.evaluation.protocol import EvaluationPhotos, frozen_protocol
from glci_dist.evaluation.result import brief
from glci_dist.runs.events import Evaluated, EvaluationFailed
from glci_dist.training.callbacks.base import Callback
from glci_dist.training.phases import StepPlan
from glci_dist.training.run_log import RunLog


class Evaluations:
    """Evaluates the completion network on the first held-out photos at configured steps; every rank has one."""

    def __init__(self, config: Config, world: World) -> None:
        """Raises ``UserError`` if the held-out shards cannot be read."""
        assert config.data.val is not None
        index = load_index(config.data.val, config.data.cache)
        self._photos = EvaluationPhotos(
            index,
            ShardStore(index, config.data.cache),
            size=config.data.size,
            short_edge=config.data.short_edge[0],
            count=config.monitor.evaluate_photos,
        )
        self._protocol = frozen_protocol("box", config.data.size, config.holes)
        self._feature_metrics = [EfficientNet(world.device)]
        self._every, self._world = config.monitor.evaluate_every, world

    def is_due(self, plan: StepPlan) -> bool:
        """Whether an evaluation is due after the step."""
        return (plan.step + 1) % self._every == 0 or plan.ends_phase

    def run(self, network: nn.Module) -> dict[str, float]:
        """The metrics of ``network`` by their names in evaluation.json, on rank 0; every rank calls it.

        Raises ``UserError``, on every rank, if photos cannot be read.
        """
        was_training = network.training
        network.eval()
        methods = {"network": complete_with(network, self._world.device)}
        try:
            result = evaluate(
                methods,
                self._photos,
                self._protocol,
                feature_metrics=self._feature_metrics,
                replicates=0,
                world=self._world,
            )
        finally:
            network.train(was_training)
        if result is None:
            return {}
        return {name: result.value("network", name) for name in result.names("network")}


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
