"""The loop. For each step: its moment, its batch, its update, the heartbeat, the guard, the checkpoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from glci_dist.cluster import collectives
from glci_dist.cluster.environment import Part, StepNote, on_ending, say_ending, tell_cause
from glci_dist.cluster.signals import StopRequest, stop_request
from glci_dist.cluster.world import joined
from glci_dist.config import Config
from glci_dist.data.batch import Batch
from glci_dist.errors import Ending, Fault, Interrupted, Superseded, UserError
from glci_dist.training.faults import in_words, is_lost
from glci_dist.training.guard import Guard
from glci_dist.training.heartbeat import Pulse, beat
from glci_dist.training.job import Job
from glci_dist.training.setup import prepare
from glci_dist.training.startup import Laps
from glci_dist.training.updates import Measures


def train(config: Config) -> None:
    """Train from the last checkpoint, or from the start, to the end of the schedule.

    Raises ``UserError`` for what cannot be done, ``Interrupted`` where a signal stopped the run (its
    state is saved), ``Superseded`` where a newer attempt owns it, ``Fault`` where the run cannot go on.
    """
    laps = Laps()
    laps.lap("imports")
    with joined(config.engine) as world, stop_request(config.checkpoints.stop_within_s) as stop:
        laps.lap("joining the world")
        try:
            ending = _train(prepare(config, world, laps), stop)
            if ending is not None:
                raise ending
        except BaseException as error:
            told = in_words(error, world)
            say_ending(str(told), Part.LOST if is_lost(error, world) else Part.BROKE)
            if isinstance(told, Ending) and told is not error:
                if is_lost(error, world):
                    tell_cause(str(told), Part.LOST)
                raise told from error
            raise
        finally:
            on_ending(None)


def _train(job: Job, stop: StopRequest) -> Exception | None:
    try:
        if job.end_if_complete():
            return None
        job.begin()
        return run(job, stop)
    finally:
        job.close()


def run(job: Job, stop: StopRequest) -> Exception | None:
    """Run the steps that are left; returns why the run ended early, if it did."""
    guard = Guard(job, stop)
    batches = iter(job.batches(job.first_step))
    step, note = job.first_step, StepNote()
    while step < job.schedule.steps:
        start = time.perf_counter()
        collectives.begin("a batch", step=step)
        note.write(step)
        # For tests and tracing, as the saver's stages.
        sys.audit("glci.step", step)
        moment = job.doctor.adjusted(job.schedule.at(step))
        if moment.phase_step == 0:
            job.journal("phase", step, phase=moment.phase)
        batch = None if step in job.health.passed_over else _take(batches, job)
        data_seconds = time.perf_counter() - start
        if step == job.first_step:
            job.laps.lap("the first batch")
        limits = job.health.limits()
        measures = Measures() if batch is None else job.contest.update(job.to_device(batch), moment, limits)
        job.follow(measures, batch, step)
        pulse = Pulse(
            step_seconds=time.perf_counter() - start,
            data_seconds=data_seconds,
            collective_seconds=collectives.take_collective_seconds(),
            stall_seconds=job.take_stall_seconds(),
            replaced=0 if batch is None else len(batch.replaced),
            remade=0 if batch is None else len(batch.remade),
            stop=bool(stop),
            superseded=job.is_superseded,
        )
        report = beat(job.world, moment, measures, pulse)
        if step == job.first_step and "the first step" not in job.laps.seconds:
            job.laps.lap("the first step")
            job.journal("running", step, startup_seconds=job.laps.seconds)
        guard.see(report, batch)
        back = guard.answer(job.health.judge(measures, limits), batch, step)
        if back is None:
            back = guard.treat(report)
        if back is not None:
            step, batches = back, iter(job.batches(back))
            continue
        if isinstance(guard.ending, Superseded):
            return guard.ending
        job.save_if_due(moment, must=guard.ending is not None)
        if guard.ending is None or moment.step + 1 == job.schedule.steps:
            job.evaluate_if_due(moment)
        step += 1
        if guard.ending is not None:
            break
    # A signal in the last step does not keep the run from being done.
    is_done = step == job.schedule.steps and isinstance(guard.ending, Interrupted)
    return job.end(step, None if is_done else guard.ending, stop)


def _take(batches: Iterator[Batch], job: Job) -> Batch:
    """The next batch; what is wrong with this rank's data is said by this rank."""
    try:
        return next(batches)
    except (UserError, Fault) as error:
        world = job.world
        raise type(error)(f"rank {world.rank} on {world.host}: {error}", one_rank=True) from error
