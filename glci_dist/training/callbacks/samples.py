"""Which samples made the weights, which did not decode, and whose loader workers were lost. On every rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glci_dist.cluster.world import World
from glci_dist.config import Config
from glci_dist.data.batch import Batch
from glci_dist.errors import UserError
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.health import Health
from glci_dist.training.history import History
from glci_dist.training.replaced import Replaced
from glci_dist.training.run_log import RunLog

_FEWEST = 1000
"""Samples that the tolerance is reckoned on at the least: one bad photo in a first batch ends nothing."""


class SampleAudit(Callback):
    """Takes down the samples of every step, as a count and a digest. It is part of a checkpoint."""

    def __init__(self, world: World, global_batch: int) -> None:
        self._world, self._slots = world, world.slots(global_batch)
        self._before, self._own = History(), History()

    def after_step(self, done: TrainedStep, control: Control) -> None:
        if done.batch is not None:
            self._own = self._own.used(done.report.moment.step, self._slots, done.batch.keys)

    def state_dict(self) -> dict[str, Any]:
        """Of all ranks, on rank 0; every rank calls it."""
        used = self._world.to_main(self._own)
        return dict(sum(used, self._before).to_json())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave on rank 0."""
        self._before, self._own = History.from_json(dict(state)), History()


class SampleWatch(Callback):
    """Tells of samples that did not decode and of lost loader workers; ends the run beyond ``data.tolerance``."""

    def __init__(self, config: Config, world: World, journal: Path, health: Health, log: RunLog) -> None:
        """``journal``: its path, for messages. ``health`` counts the samples."""
        self._config, self._world, self._journal, self._health, self._log = config, world, journal, health, log
        self._replaced = Replaced(config.data.shards, journal, log.say)

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report, batch, health = done.report, done.batch, self._health
        health.samples += self._config.global_batch
        health.replaced += report.replaced
        if report.replaced and batch is not None:
            self._tell_replaced(report.moment.step, batch)
        if report.remade and batch is not None:
            self._tell_remade(report.moment.step, batch)
        tolerance = self._config.data.tolerance
        if health.replaced > tolerance * max(health.samples, _FEWEST):
            control.end(
                UserError(
                    f"{health.replaced} of {health.samples} samples did not decode, more than "
                    f"data.tolerance={tolerance}: {self._journal} names them; "
                    "mend the shards or raise data.tolerance"
                )
            )

    def close(self) -> None:
        self._replaced.sum_up()

    def _tell_replaced(self, step: int, batch: Batch) -> None:
        for rank in self._world.to_main(batch.replaced):
            for each in rank:
                self._replaced.see(step, each)
                details = {"shard": each.shard, "key": each.key, "slot": each.slot, "reason": each.reason}
                self._log.event("replaced", step, **details)

    def _tell_remade(self, step: int, batch: Batch) -> None:
        """Say and write down which loader workers were lost, of which rank, and to what."""
        for rank, (host, reasons) in enumerate(self._world.to_main((self._world.host, batch.remade))):
            for reason in reasons:
                self._log.event("worker-lost", step, rank=rank, on=host, reason=reason)
                self._log.say(
                    f"step {step}: a loader worker of rank {rank} on {host} was lost ({reason}); its batch was made "
                    "again by new workers; if it happens often: fewer data.workers, a smaller data.prefetch"
                )
