"""The loop. For each step: its moment, its batch, its update, the heartbeat, the observers."""

from __future__ import annotations

import time
from collections.abc import Iterator

from glci_dist.cluster.signals import StopRequest, stop_request
from glci_dist.cluster.world import is_lost_peer, joined
from glci_dist.config import Config
from glci_dist.data.batch import Batch
from glci_dist.errors import Fault, Interrupted, UserError
from glci_dist.training.guard import Guard
from glci_dist.training.heartbeat import Heartbeat, Pulse
from glci_dist.training.setup import Job, prepare
from glci_dist.training.updates import to_device


def train(config: Config) -> None:
    """Train from the last checkpoint, or from the start, to the end of the schedule.

    Raises ``UserError`` for what cannot be done, ``Interrupted`` where a signal stopped the run (its
    state is saved), ``Fault`` where the run cannot go on (saved too, unless another rank was lost).
    """
    with joined(config.engine) as world, stop_request() as stop:
        job = prepare(config, world)
        if job.first_step == job.schedule.steps:
            job.tell(f"{job.folder.path} is complete: {job.schedule.steps} steps are done")
            return
        job.begin()
        try:
            ending = run(job, stop)
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            ending = Fault(
                f"rank {world.rank} on {world.host} lost another rank, whose own message says why; "
                "the same command goes on from the last checkpoint",
                one_rank=True,
            )
        finally:
            job.close()
        if ending is not None:
            raise ending


def run(job: Job, stop: StopRequest) -> Exception | None:
    """Run the steps that are left; returns why the run ended early, if it did."""
    heartbeat = Heartbeat(job.world)
    guard = Guard(job, stop)
    batches = iter(job.batches)
    for step in range(job.first_step, job.schedule.steps):
        start = time.perf_counter()
        moment = job.schedule.at(step)
        if moment.phase_step == 0:
            job.journal("phase", step, phase=moment.phase)
        batch = _take(batches, job)
        data_seconds = time.perf_counter() - start
        measures = job.contest.update(to_device(batch, job.world.device), moment)
        job.follow(measures, step)
        pulse = Pulse(
            step_seconds=time.perf_counter() - start,
            data_seconds=data_seconds,
            collective_seconds=job.contest.take_collective_seconds(),
            replaced=len(batch.replaced),
            stop=bool(stop),
        )
        guard.see(heartbeat.send(moment, measures, pulse))
        guard.check(measures, batch, step)
        if moment.ends_phase or guard.ending is not None:
            guard.see(heartbeat.flush())
            job.save(moment)
        done = step + 1 == job.schedule.steps
        if guard.ending is not None and not (done and isinstance(guard.ending, Interrupted)):
            job.journal("stopped", step + 1, reason=str(guard.ending))
            return guard.ending
    job.journal("end", job.schedule.steps)
    return None


def _take(batches: Iterator[Batch], job: Job) -> Batch:
    """The next batch; what is wrong with this rank's data is said by this rank."""
    try:
        return next(batches)
    except UserError as error:
        world = job.world
        raise UserError(f"rank {world.rank} on {world.host}: {error}", one_rank=True) from error
