"""Builds a trainer from a configuration: data, networks, engines, state, callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from glci_dist import compose
from glci_dist.checkpoints.registry import Registry
from glci_dist.cluster import collectives
from glci_dist.cluster.elastic import job, on_ending
from glci_dist.cluster.signals import StopRequest
from glci_dist.cluster.world import World
from glci_dist.config import Config, OptimizerConfig
from glci_dist.data.batch import Batch
from glci_dist.data.decode import DecodeError, decode
from glci_dist.data.index import Index, load_index
from glci_dist.data.loader import make_loader
from glci_dist.data.stages import check_all_holes, orders, stages
from glci_dist.data.store import ShardStore
from glci_dist.data.verify import check_shards
from glci_dist.errors import UserError
from glci_dist.models.build import build_completion, build_discriminators
from glci_dist.models.completion import fill_colour
from glci_dist.models.contracts import count_converted
from glci_dist.models.sizes import check_models
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.endings import Endings
from glci_dist.runs.folder import RunFolder
from glci_dist.runs.ledger import Ledger
from glci_dist.training.attempt_start import AttemptStart
from glci_dist.training.callbacks.base import Callback, Callbacks
from glci_dist.training.callbacks.build import callbacks, custom_callbacks, custom_loggers
from glci_dist.training.callbacks.evaluation import Evaluations
from glci_dist.training.callbacks.logging import STATES
from glci_dist.training.callbacks.samples import SampleAudit
from glci_dist.training.checkpointer import Checkpointer
from glci_dist.training.doctor import Doctor
from glci_dist.training.ema import MovingAverage
from glci_dist.training.engines import Engine
from glci_dist.training.gan_metrics import COMPLETION_METRICS
from glci_dist.training.gan_step import GanTrainStep
from glci_dist.training.gradient_monitor import GradientMonitor
from glci_dist.training.loggers.base import Logger, RunInfo
from glci_dist.training.metric_registry import MetricRegistry
from glci_dist.training.phases import Schedule
from glci_dist.training.resume_changes import ResumeChanges
from glci_dist.training.resume_checkpoint import check_newest_checkpoint
from glci_dist.training.run_log import RunLog
from glci_dist.training.scalars import DERIVED_METRICS
from glci_dist.training.startup_timer import StartupTimer
from glci_dist.training.step_parts import StepParts, step_parts
from glci_dist.training.trainer import RankBatches, Trainer, TrainStep
from glci_dist.urls import without_secrets

Made = TypeVar("Made")
_HOST_KEYS = (
    *("runs:", "data.", "cluster.", "monitor.", "checkpoints."),
    *("engine.threads:", "engine.device:", "engine.timeout_s:"),
)
"""Keys that may differ from host to host."""
_COLOUR_PHOTOS = 256
_COLOUR_SHARDS = 8
"""Few, so that a remote corpus is not fetched whole to compute its mean colour."""


def prepare(
    config: Config, world: World, startup: StartupTimer | None = None, stop: StopRequest | None = None
) -> Trainer:
    """The trainer, on every rank; raises ``UserError`` if something is wrong."""
    _check_same_configuration(config, world)
    compose.check_world(config, world.size, world.device.type)
    check_all_holes(config)
    check_models(config)
    folder = RunFolder(Path(config.runs) / config.name)
    startup = startup or StartupTimer()
    collectives.mark_progress("opening the data")
    index, colour = _open_data(config, world, folder)
    startup.record("opening the data")
    hosts = world.all_gather_objects(world.host)
    collectives.mark_progress("building the networks")
    # As much as possible happens before the lease: a failure here does not fence off an attempt that still runs.
    parts = _on_all_ranks(world, lambda: step_parts(config, world.device))
    gan = build_gan_step(config, world, parts)
    custom, loggers = _construct_custom(config, world, folder)
    metrics = _metrics(gan, parts)
    fill_colour(gan.completion.network).copy_(torch.tensor(colour).view(1, 3, 1, 1))
    evaluations = Evaluations(config, world) if config.monitor.evaluate_every else None
    average = MovingAverage(gan.completion.network, config.engine.ema) if config.engine.ema else None
    notes = world.on_main(folder.version_notes)
    collectives.mark_progress("taking the lease")
    facts = {"hosts": list(dict.fromkeys(hosts)), **job()}
    attempt, changes = world.on_main(lambda: folder.begin_attempt(config, index.digest, ranks=world.size, facts=facts))
    trainer = _assemble(
        config,
        world,
        folder,
        attempt,
        step=TrainStep(gan, average, world),
        index=index,
        metrics=metrics,
        custom=custom,
        changes=ResumeChanges(changes, notes),
        startup=startup,
        stop=stop,
    )
    startup.record("building the networks")
    trainer.start.resume(gan.adversarial_weight, startup)
    if trainer.first_step < trainer.schedule.steps:
        trainer.callbacks.all += callbacks(config, trainer, startup, index, hosts, evaluations, loggers)
    return trainer


def _assemble(
    config: Config,
    world: World,
    folder: RunFolder,
    attempt: Attempt,
    *,
    step: TrainStep,
    index: Index,
    metrics: MetricRegistry,
    custom: Mapping[str, Callback],
    changes: ResumeChanges,
    startup: StartupTimer,
    stop: StopRequest | None,
) -> Trainer:
    """The trainer of an attempt that owns the lease, at the run's start. ``custom``: the user's own callbacks."""
    endings = Endings(attempt, rank=world.rank, host=world.host)
    on_ending(endings.fail)
    log = RunLog(endings.journal)
    schedule = Schedule(config.phases, global_batch=config.global_batch, size=config.data.size)
    gradient_monitor, doctor = GradientMonitor(config.engine), Doctor(config.doctor)
    audit = SampleAudit(world)
    registry = _registry(step, custom, gradient_monitor, doctor, audit)
    converted = {name: count for name, each in step.engines().items() if (count := count_converted(each.network))}
    checkpoints = Checkpointer(config, world, folder, attempt, registry, log)
    ledger = Ledger(attempt) if world.is_main else None
    if ledger is not None and world.watchdog is not None:
        world.watchdog.every_second(partial(_every_second, ledger, attempt, log))
    return Trainer(
        world=world,
        folder=folder,
        attempt=attempt,
        schedule=schedule,
        step=step,
        batches=RankBatches(_stream(config, world, index), world, schedule.steps, gradient_monitor, startup),
        gradient_monitor=gradient_monitor,
        doctor=doctor,
        audit=audit,
        ledger=ledger,
        checkpoints=checkpoints,
        log=log,
        endings=endings,
        stop=StopRequest() if stop is None else stop,
        callbacks=Callbacks([], log),
        custom=dict(custom),
        metrics=metrics,
        start=AttemptStart(config, world, folder, attempt, schedule, checkpoints, log, changes, converted),
    )


def _registry(
    step: TrainStep,
    custom: Mapping[str, Callback],
    gradient_monitor: GradientMonitor,
    doctor: Doctor,
    audit: SampleAudit,
) -> Registry:
    """What a checkpoint holds, by its names there."""
    callbacks = {f"callbacks.{name}": each for name, each in custom.items()}
    return Registry(
        {
            **step.networks(),
            **{f"{side}.optimizer": engine for side, engine in step.engines().items()},
            "health": gradient_monitor,
            "balance": step.gan.adversarial_weight,
            "doctor": doctor,
            "samples": audit,
            **callbacks,
        },
        # Checkpoints of older versions lack these; they start in their initial state then.
        optional=("balance", "doctor", *callbacks),
    )


def _every_second(ledger: Ledger, attempt: Attempt, log: RunLog) -> None:
    """Called once a second on rank 0: write the ledger, and check the lease."""
    ledger.write()
    log.is_superseded = log.is_superseded or attempt.is_over()


def _stream(config: Config, world: World, index: Index) -> Callable[[Sequence[int]], Iterable[Batch]]:
    """A function that loads this rank's batches of given steps."""
    return lambda steps: make_loader(
        index,
        config.data,
        config.holes,
        seed=config.seed,
        global_batch=config.global_batch,
        rank=world.rank,
        world_size=world.size,
        steps=steps,
        stages=stages(config),
    )


def _construct_custom(config: Config, world: World, folder: RunFolder) -> tuple[dict[str, Callback], list[Logger]]:
    """The user's own callbacks and loggers. Raises ``UserError`` on every rank if one fails on any rank."""
    info = RunInfo(
        name=config.name,
        folder=folder.path,
        config=compose.resolved(config),
        steps=Schedule(config.phases).steps,
        rank=world.rank,
        world_size=world.size,
    )

    return _on_all_ranks(
        world, lambda: (custom_callbacks(config, info), custom_loggers(config, info) if world.is_main else [])
    )


def _on_all_ranks(world: World, make: Callable[[], Made]) -> Made:
    """What each rank makes; raises ``UserError`` on every rank if it fails on any."""
    problem: str | None = None
    try:
        made = make()
    except UserError as error:
        problem = str(error)
    world.raise_on_all_ranks(problem)
    return made


def _metrics(gan: GanTrainStep, parts: StepParts) -> MetricRegistry:
    custom = [each.metric for each in parts.metrics if each not in COMPLETION_METRICS]
    # By identity, so that one of the user's that equals one of ours is refused too.
    ours = [metric for metric in gan.metrics if all(metric is not each for each in custom)]
    try:
        return MetricRegistry([*STATES, *ours, *DERIVED_METRICS], custom=custom)
    except ValueError as error:
        raise UserError(f"{error}: give the loss term, the penalty or the metric of yours another one") from error


def _check_same_configuration(config: Config, world: World) -> None:
    """Raise ``UserError`` if the ranks have different configurations, as tasks of a job step may."""
    configs = world.all_gather_objects(config)
    for rank, other in enumerate(configs):
        if other == configs[0]:
            continue
        parts = [line for line in compose.differences(configs[0], other) if not line.startswith(_HOST_KEYS)]
        if parts:
            raise UserError(
                f"ranks 0 and {rank} of one world were given different runs ({'; '.join(parts)}): give all ranks the "
                "same, or start each run by itself"
            )


def build_gan_step(config: Config, world: World, parts: StepParts | None = None) -> GanTrainStep:
    """Both networks in their engines."""

    def engine(network: torch.nn.Module, optimizer: OptimizerConfig) -> Engine:
        return Engine(network, optimizer, config=config.engine, global_batch=config.global_batch, world=world)

    parts = parts or step_parts(config, world.device)
    return GanTrainStep(
        engine(build_completion(config), config.optimizers.completion),
        engine(build_discriminators(config), config.optimizers.discriminator),
        losses=config.losses,
        accumulation=config.engine.accumulation,
        seed=config.seed,
        terms=parts.terms,
        penalties=parts.penalties,
        statistics=parts.metrics,
    )


def _open_data(config: Config, world: World, folder: RunFolder) -> tuple[Index, list[float]]:
    """The index and the mean colour; an error on one rank ends all ranks with the same line."""

    def opened(root: str) -> Index:
        index = load_index(root, config.data.cache)
        check_shards(index)
        ShardStore(index, config.data.cache).check()
        return index

    def open_all() -> Index:
        index = opened(config.data.shards)
        orders(index.counts, stages(config), seed=config.seed, config=config.data.order)
        if config.data.val:
            opened(config.data.val)
        return index

    index = _on_all_ranks(world, open_all)

    def check() -> list[float]:
        folder.check(config, index.digest)
        check_newest_checkpoint(folder.checkpoints, config)
        return config.data.mean_colour or _mean_colour(index, config)

    return index, world.on_main(check)


def _mean_colour(index: Index, config: Config) -> list[float]:
    """Mean red, green, blue in [0, 1] of evenly spaced photos of a few evenly spaced shards."""
    store = ShardStore(index, config.data.cache)
    shards = np.unique(np.linspace(0, len(index.shards) - 1, _COLOUR_SHARDS).astype(np.int64))
    colours, refused = [], ""
    for shard in shards.tolist():
        samples = index.shards[shard].samples
        for number in np.unique(np.linspace(0, samples - 1, _COLOUR_PHOTOS // len(shards)).astype(np.int64)).tolist():
            key, encoded = store.sample(shard, number)
            try:
                photo = store.decoded(shard, number, partial(decode, short_edge=config.data.size), encoded=encoded)
                colours.append(photo.mean((0, 1)) / 255)
            except DecodeError as error:
                # The stream reports photos that do not decode.
                refused = refused or f"{index.shards[shard].name}/{key}: {error}"
    if not colours:
        raise UserError(
            f"{without_secrets(index.root)}: none of {_COLOUR_PHOTOS} photos decodes (the first: {refused}); run "
            "`glci shards verify`"
        )
    return [float(value) for value in np.mean(colours, 0)]
