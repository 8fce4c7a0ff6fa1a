"""The trainer: runs the remaining steps, and passes each to the callbacks and the checkpoints."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from glci_dist.cluster import collectives
from glci_dist.cluster.elastic import StepFile
from glci_dist.cluster.signals import StopRequest
from glci_dist.cluster.world import World
from glci_dist.data.batch import Batch
from glci_dist.errors import Fault, Interrupted, UserError
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.endings import Endings
from glci_dist.runs.events import Completed, Stopped
from glci_dist.runs.folder import RunFolder
from glci_dist.runs.ledger import Ledger
from glci_dist.training.attempt_start import AttemptStart
from glci_dist.training.callbacks.base import Callback, Callbacks, Control, TrainedStep
from glci_dist.training.callbacks.samples import SampleAudit
from glci_dist.training.checkpointer import Checkpointer
from glci_dist.training.device_batch import DeviceBatch, to_device
from glci_dist.training.doctor import Doctor
from glci_dist.training.ema import MovingAverage
from glci_dist.training.engines import Engine
from glci_dist.training.gan_step import GanTrainStep, GradientNormLimits, StepMeasurements
from glci_dist.training.gradient_monitor import GradientMonitor
from glci_dist.training.metric_registry import MetricRegistry
from glci_dist.training.phases import Schedule, StepPlan
from glci_dist.training.run_log import RunLog
from glci_dist.training.startup_timer import StartupTimer
from glci_dist.training.step_report import RankStepInfo, StepReport, reduce_step


@dataclass
class RankBatches:
    """This rank's batches, without those of skipped steps."""

    stream: Callable[[Sequence[int]], Iterable[Batch]]
    """Loads this rank's batches of given steps."""
    world: World
    steps: int
    """Steps of the schedule."""
    gradient_monitor: GradientMonitor
    startup: StartupTimer

    def from_step(self, step: int) -> Iterator[Batch]:
        """The batches from ``step`` on."""
        over, steps = set(self.gradient_monitor.skipped_steps), range(step, self.steps)
        return iter(self.stream([each for each in steps if each not in over] if over else steps))

    def next_batch(self, batches: Iterator[Batch], step: int) -> Batch | None:
        """The batch of ``step``, None if it is skipped. Errors of the data are reported by the rank that meets them."""
        try:
            batch = None if step in self.gradient_monitor.skipped_steps else next(batches)
        except (UserError, Fault) as error:
            raise type(error)(f"rank {self.world.rank} on {self.world.host}: {error}", one_rank=True) from error
        if "the first batch" not in self.startup.seconds:
            self.startup.record("the first batch")
        return batch


@dataclass
class TrainStep:
    """One step of the networks, with the moving average, on this rank's share of a batch."""

    gan: GanTrainStep
    average: MovingAverage | None
    world: World

    def engines(self) -> dict[str, Engine]:
        """Both engines by their names in a checkpoint."""
        return {"completion": self.gan.completion, "discriminator": self.gan.discriminators}

    def networks(self) -> dict[str, nn.Module]:
        """Every network of the run by its name in a checkpoint."""
        networks = {side: engine.network for side, engine in self.engines().items()}
        return networks if self.average is None else {**networks, "average": self.average.network}

    @property
    def eval_network(self) -> nn.Module:
        """The network for pictures and evaluations: the moving average, if there is one."""
        return self.average.network if self.average is not None else self.gan.completion.network

    def to_device(self, batch: Batch) -> DeviceBatch:
        """This rank's batch on its device."""
        return to_device(batch, self.world.device)

    def run(self, batch: Batch | None, plan: StepPlan, limits: GradientNormLimits) -> StepMeasurements:
        """Update the networks, and the moving average after an applied completion update; without a batch nothing."""
        if batch is None:
            return StepMeasurements()
        measures = self.gan.update(self.to_device(batch), plan, limits)
        if self.average is not None and measures.completion is not None and measures.completion.applied:
            self.average.update(self.gan.completion.network, plan.step)
        return measures


@dataclass
class Trainer:
    """A run that is ready to continue at ``first_step``; every rank has one."""

    world: World
    folder: RunFolder
    attempt: Attempt
    schedule: Schedule
    step: TrainStep
    batches: RankBatches
    gradient_monitor: GradientMonitor
    doctor: Doctor
    audit: SampleAudit
    ledger: Ledger | None
    """On rank 0."""
    checkpoints: Checkpointer
    log: RunLog
    endings: Endings
    """Records why the attempt ends, on this rank."""
    stop: StopRequest
    callbacks: Callbacks
    custom: dict[str, Callback]
    """The user's own callbacks by name; ``callbacks`` holds them too."""
    metrics: MetricRegistry
    """All metrics that a step can have."""
    start: AttemptStart
    """The start of the attempt."""

    @property
    def first_step(self) -> int:
        """The step from which the run continues."""
        return self.start.first_step

    def end_if_complete(self) -> bool:
        """Whether no step is left to run; if so, report it and record the end."""
        if self.first_step < self.schedule.steps:
            return False
        self.start.report_complete()
        self.endings.end(Completed(self.first_step))
        return True

    def run(self) -> Exception | None:
        """Run the remaining steps; returns why the run ended early, if it did."""
        control, note = Control(), StepFile()
        self.callbacks.on_start(self.first_step)
        step, batches = self.first_step, self.batches.from_step(self.first_step)
        while step < self.schedule.steps:
            start = time.perf_counter()
            collectives.mark_progress("a batch", step=step)
            note.write(step)
            # For tests and tracing, like the saver's stages.
            sys.audit("glci.step", step)
            plan = self.callbacks.adjust(self.schedule.at(step))
            self.callbacks.before_step(plan)
            batch = self.batches.next_batch(batches, step)
            data_seconds = time.perf_counter() - start
            limits = self.gradient_monitor.limits()
            measures = self.step.run(batch, plan, limits)
            report = self._reduce(plan, measures, batch, start, data_seconds)
            self.callbacks.after_step(TrainedStep(report, batch, measures, limits), control)
            if control.is_superseded:
                return control.ending
            back = control.take_rollback_step()
            if back is not None:
                step, batches = back, self.batches.from_step(back)
                continue
            self.checkpoints.save_if_due(plan, must=control.ending is not None)
            if control.ending is None or step + 1 == self.schedule.steps:
                self.callbacks.after_save(plan)
            step += 1
            if control.ending is not None:
                break
        return self._end(step, control.ending)

    def close(self) -> None:
        """Close the callbacks, however the run ends, and write the ledger for the last time."""
        try:
            self.callbacks.close()
        finally:
            if self.ledger is not None:
                self.ledger.write()

    def _reduce(
        self, plan: StepPlan, measures: StepMeasurements, batch: Batch | None, start: float, data_seconds: float
    ) -> StepReport:
        """All-reduce the step."""
        info = RankStepInfo(
            step_seconds=time.perf_counter() - start,
            data_seconds=data_seconds,
            collective_seconds=collectives.pop_collective_seconds(),
            stall_seconds=self.checkpoints.take_stall_seconds(),
            replaced=0 if batch is None else len(batch.replaced),
            remade=0 if batch is None else len(batch.remade),
            stop=bool(self.stop),
            superseded=self.log.is_superseded or self.checkpoints.is_superseded,
        )
        return reduce_step(self.world, plan, measures, info, self.step.gan.metrics)

    def _end(self, step: int, ending: Exception | None) -> Exception | None:
        """Wait for the last save and record the end before ``step``; returns why the run ends early, if it does."""
        # A run that gets a signal in its last step is complete.
        is_done = step == self.schedule.steps and isinstance(ending, Interrupted)
        ending = self.checkpoints.finish(step, None if is_done else ending)
        if ending is None:
            self.endings.end(Completed(step))
            return None
        waited = [seconds for seconds in self.world.gather_objects(self.stop.seconds) if seconds is not None]
        self.endings.end(Stopped(step, str(ending), seconds=round(max(waited), 3) if waited else None))
        return ending
