"""From a configuration to a job that is ready to run: data, networks, engines, observers, state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glci_dist import compose
from glci_dist.cluster.world import World
from glci_dist.config import Config, OptimizerConfig
from glci_dist.data.batch import Batch
from glci_dist.data.decode import DecodeError, decode
from glci_dist.data.holes import check_holes
from glci_dist.data.index import Index, load_index
from glci_dist.data.loader import make_loader
from glci_dist.data.order import Order
from glci_dist.data.store import ShardStore
from glci_dist.data.verify import check_shards
from glci_dist.errors import UserError
from glci_dist.models.build import build_completion, build_discriminators, check_models
from glci_dist.models.completion import fill_colour
from glci_dist.training import checkpoints
from glci_dist.training.ema import MovingAverage
from glci_dist.training.engines import Engine
from glci_dist.training.heartbeat import Report
from glci_dist.training.observers import Observer, Pictures, Progress, TensorBoard
from glci_dist.training.phases import Moment, Schedule
from glci_dist.training.pictures import PictureGrid
from glci_dist.training.run import RunFolder
from glci_dist.training.updates import Contest, Measures

_COLOUR_PHOTOS = 256
_COLOUR_SHARDS = 8
"""So few that a remote corpus is not fetched whole for its colour."""


@dataclass
class Job:
    """A run that is ready to go on at ``first_step``."""

    config: Config
    world: World
    folder: RunFolder
    schedule: Schedule
    contest: Contest
    average: MovingAverage | None
    first_step: int
    batches: Iterable[Batch]
    observers: list[Observer] = field(default_factory=list)

    def follow(self, measures: Measures, step: int) -> None:
        """Let the moving average follow an applied update of the completion network."""
        if self.average is not None and measures.completion is not None and measures.completion.applied:
            self.average.follow(self.contest.completion.network, step)

    def observe(self, report: Report) -> None:
        for observer in self.observers:
            observer.see(report)

    def save(self, moment: Moment) -> None:
        """Save the state after ``moment``'s step; every rank calls it."""
        path = checkpoints.save(
            self.folder.checkpoints,
            step=moment.step + 1,
            phase=moment.phase,
            networks=_networks(self.contest, self.average),
            optimizers={
                "completion": self.contest.completion.optimizer_state(),
                "discriminator": self.contest.discriminators.optimizer_state(),
            },
            zero_stage=self.config.engine.zero_stage,
            world=self.world,
        )
        self.journal("checkpoint", moment.step + 1, phase=moment.phase, path=path.name)

    def journal(self, event: str, step: int, **details: Any) -> None:
        """Write an event, on rank 0."""
        if self.world.is_main:
            self.folder.journal.write(event, step=step, **details)

    def tell(self, line: str) -> None:
        """Print a line, on rank 0."""
        if self.world.is_main:
            print(line, flush=True)

    def begin(self) -> None:
        """Say and write down that the run starts, or goes on, and on what."""
        engine, world = self.config.engine, self.world
        event = "resume" if self.first_step else "start"
        self.journal(event, self.first_step, ranks=world.size, device=str(world.device), precision=engine.precision)
        self.tell(
            f"{event} {self.folder.path} at step {self.first_step} of {self.schedule.steps}: {world.size} rank(s), "
            f"{world.device.type}, {engine.precision}, ZeRO stage {engine.zero_stage}, "
            f"{self.config.global_batch // world.size} of {self.config.global_batch} slots a rank"
        )

    def close(self) -> None:
        for observer in self.observers:
            observer.close()


def prepare(config: Config, world: World) -> Job:
    """Everything that a run needs, on every rank; raises ``UserError`` where something is wrong."""
    compose.check_world(config, world.size, world.device.type)
    check_holes(config.holes, config.data.size)
    check_models(config)
    folder = RunFolder(Path(config.runs) / config.name)
    index, colour = _open_data(config, world, folder)
    contest = build_contest(config, world)
    fill_colour(contest.completion.network).copy_(torch.tensor(colour).view(1, 3, 1, 1))
    average = MovingAverage(contest.completion.network, config.engine.ema) if config.engine.ema else None
    schedule = Schedule(config.phases)
    first_step = _resume(config, world, folder, contest, average)
    batches = make_loader(
        index,
        config.data,
        config.holes,
        seed=config.seed,
        global_batch=config.global_batch,
        rank=world.rank,
        world_size=world.size,
        steps=range(first_step, schedule.steps),
    )
    job = Job(config, world, folder, schedule, contest, average, first_step, batches)
    if world.is_main and first_step < schedule.steps:
        job.observers = _observers(job, index)
    return job


def build_contest(config: Config, world: World) -> Contest:
    """Both networks in their engines."""

    def engine(network: torch.nn.Module, optimizer: OptimizerConfig) -> Engine:
        return Engine(network, optimizer, config=config.engine, global_batch=config.global_batch, world=world)

    return Contest(
        engine(build_completion(config), config.optimizers.completion),
        engine(build_discriminators(config), config.optimizers.discriminator),
        losses=config.losses,
        patch=config.holes.patch,
        accumulation=config.engine.accumulation,
    )


def _open_data(config: Config, world: World, folder: RunFolder) -> tuple[Index, list[float]]:
    """The index and the mean colour; what is wrong on one rank ends all with the same line."""
    problem: str | None = None
    index: Index | None = None
    colour: list[float] = []
    try:
        index = load_index(config.data.shards)
        check_shards(index)
        Order(index.counts, seed=config.seed, global_batch=config.global_batch, config=config.data.order)
        if config.data.val:
            check_shards(load_index(config.data.val))
        if world.is_main:
            colour = config.data.mean_colour or _mean_colour(index, config)
            folder.claim(config, index.digest)
    except UserError as error:
        problem = str(error)
    world.agree(problem)
    assert index is not None
    return index, world.from_main(colour)


def _mean_colour(index: Index, config: Config) -> list[float]:
    """Mean red, green, blue in [0, 1] of photos that lie evenly in a few shards, evenly over the corpus."""
    store = ShardStore(index, config.data.cache)
    shards = np.unique(np.linspace(0, len(index.shards) - 1, _COLOUR_SHARDS).astype(np.int64))
    colours = []
    for shard in shards.tolist():
        samples = index.shards[shard].samples
        for number in np.unique(np.linspace(0, samples - 1, _COLOUR_PHOTOS // len(shards)).astype(np.int64)).tolist():
            _, encoded = store.sample(shard, number)
            try:
                colours.append(decode(encoded, short_edge=config.data.size).mean((0, 1)) / 255)
            except DecodeError:
                # A photo that does not decode is counted and named where the stream meets it.
                continue
    if not colours:
        raise UserError(f"{index.root}: none of {_COLOUR_PHOTOS} photos decodes: run `glci shards verify` on it")
    return [float(value) for value in np.mean(colours, 0)]


def _networks(contest: Contest, average: MovingAverage | None) -> dict[str, torch.nn.Module]:
    networks = {"completion": contest.completion.network, "discriminator": contest.discriminators.network}
    return networks if average is None else {**networks, "average": average.network}


def _resume(config: Config, world: World, folder: RunFolder, contest: Contest, average: MovingAverage | None) -> int:
    """Fill the networks and optimisers from the last checkpoint; returns the next step to run."""
    # One rank looks, lest a slow network file system shows the ranks different folders.
    checkpoint = world.from_main(checkpoints.latest(folder.checkpoints) if world.is_main else None)
    if checkpoint is None:
        return 0
    states = checkpoints.load_optimizers(checkpoint, zero_stage=config.engine.zero_stage, world=world)
    checkpoints.load_networks(checkpoint, _networks(contest, average))
    contest.completion.load_optimizer_state(states["completion"])
    contest.discriminators.load_optimizer_state(states["discriminator"])
    return checkpoint.step


def _observers(job: Job, index: Index) -> list[Observer]:
    config, device = job.config, job.world.device
    board = TensorBoard(job.folder.tensorboard, config, first_step=job.first_step, device=device)
    observers: list[Observer] = [board]
    if config.monitor.pictures_every:
        faces = load_index(config.data.val) if config.data.val else index
        network = job.average.network if job.average is not None else job.contest.completion.network
        grid = PictureGrid(faces, config, device)
        observers.append(Pictures(grid, network, job.folder.pictures, config.monitor.pictures_every, board.writer))
    if config.monitor.progress:
        observers.append(
            Progress(first_step=job.first_step, steps=job.schedule.steps, global_batch=config.global_batch)
        )
    return observers
