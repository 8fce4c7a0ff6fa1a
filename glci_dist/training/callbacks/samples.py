"""Records which samples were used, which did not decode, and which loader workers were lost. On every rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glci_dist.cluster.world import World
from glci_dist.config import Config
from glci_dist.data.batch import Batch
from glci_dist.errors import UserError
from glci_dist.runs.events import SampleReplaced, WorkerLost
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.gradient_monitor import GradientMonitor
from glci_dist.training.run_log import RunLog
from glci_dist.training.sample_digest import SampleDigest

_FEWEST = 1000
"""``data.tolerance`` is relative to at least this many samples, so that one bad photo in the first batch is allowed."""


class SampleAudit(Callback):
    """Records the samples of every step as a count and a digest, which are saved in checkpoints."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._before, self._own = SampleDigest(), SampleDigest()

    def after_step(self, done: TrainedStep, control: Control) -> None:
        if done.batch is not None:
            self._own = self._own.with_samples(done.batch.step, done.batch.slots, done.batch.keys)

    def state_dict(self) -> dict[str, Any]:
        """The digest of all ranks, on rank 0; every rank calls it."""
        used = self._world.gather_objects(self._own)
        return dict(sum(used, self._before).to_json())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned on rank 0."""
        self._before, self._own = SampleDigest.from_json(dict(state)), SampleDigest()


class SampleWatch(Callback):
    """Reports samples that did not decode and lost loader workers; ends the run beyond ``data.tolerance``."""

    def __init__(
        self, config: Config, world: World, journal: Path, gradient_monitor: GradientMonitor, log: RunLog
    ) -> None:
        """``journal``: its path, for messages. ``gradient_monitor`` stores the counts of samples."""
        self._config, self._world, self._journal = config, world, journal
        self._gradient_monitor, self._log = gradient_monitor, log
        # Of the attempt, on rank 0.
        self._photos: set[tuple[str, str]] = set()
        self._steps: set[int] = set()
        self._slots = 0

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report, batch, gradient_monitor = done.report, done.batch, self._gradient_monitor
        gradient_monitor.samples += report.plan.batch
        gradient_monitor.replaced += report.replaced
        if report.replaced and batch is not None:
            self._report_replaced(report.plan.step, batch)
        if report.remade and batch is not None:
            self._report_lost_workers(report.plan.step, batch)
        tolerance = self._config.data.tolerance
        if gradient_monitor.replaced > tolerance * max(gradient_monitor.samples, _FEWEST):
            control.end(
                UserError(
                    f"{gradient_monitor.replaced} of {gradient_monitor.samples} samples did not decode, more than "
                    f"data.tolerance={tolerance}: {self._journal} names them; "
                    "mend the shards or raise data.tolerance"
                )
            )

    def close(self) -> None:
        if self._photos:
            self._log.say(
                f"{len(self._photos)} photo(s) that do not decode were replaced by others, {self._slots} time(s) in "
                f"{len(self._steps)} step(s): {self._journal} names them; "
                f"glci shards verify {self._config.data.shards}"
            )

    def _report_replaced(self, step: int, batch: Batch) -> None:
        """Write which photos were replaced into the journal, and print the attempt's first."""
        for each in (each for rank in self._world.gather_objects(batch.replaced) for each in rank):
            if not self._photos:
                self._log.say(
                    f"step {step}: {each.shard}/{each.key} does not decode ({each.reason}): the next photo of its "
                    "shard stands in for it, as for others that follow; look: glci shards verify "
                    f"{self._config.data.shards}"
                )
            self._photos.add((each.shard, each.key))
            self._steps.add(step)
            self._slots += 1
            self._log.event(SampleReplaced(step, each.shard, each.key, each.slot, each.reason))

    def _report_lost_workers(self, step: int, batch: Batch) -> None:
        """Report which ranks lost loader workers, and why."""
        for rank, (host, reasons) in enumerate(self._world.gather_objects((self._world.host, batch.remade))):
            for reason in reasons:
                self._log.event(WorkerLost(step, rank, on=host, reason=reason))
                self._log.say(
                    f"step {step}: a loader worker of rank {rank} on {host} was lost ({reason}); its batch was made "
                    "again by new workers; if it happens often: fewer data.workers, a smaller data.prefetch"
                )
