"""The callbacks that a configuration asks for, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glci_dist.config import Config
from glci_dist.data.index import Index, load_index
from glci_dist.models.build import build_discriminators
from glci_dist.runs.ledger import Ledger
from glci_dist.training.callbacks.accounts import PhaseStarts, Startup, StragglerWatch
from glci_dist.training.callbacks.base import Callback
from glci_dist.training.callbacks.evaluation import EvaluationOnTheWay
from glci_dist.training.callbacks.gradients import GradientBalance, GradientWatch
from glci_dist.training.callbacks.pictures import Pictures
from glci_dist.training.callbacks.progress import Progress, Unprinted
from glci_dist.training.callbacks.samples import SampleAudit, SampleWatch
from glci_dist.training.callbacks.stopping import LeaseWatch, StopSignals
from glci_dist.training.callbacks.tensorboard import TensorBoard
from glci_dist.training.callbacks.treatment import Patient, Treatment
from glci_dist.training.checkpointer import Rollback
from glci_dist.training.doctor import Doctor
from glci_dist.training.evaluations import Evaluations
from glci_dist.training.pictures import PictureGrid
from glci_dist.training.startup import Laps
from glci_dist.training.stragglers import Stragglers
from glci_dist.training.trainer import Trainer


@dataclass(frozen=True)
class Parts:
    """What callbacks are made of."""

    config: Config
    trainer: Trainer
    doctor: Doctor
    audit: SampleAudit
    laps: Laps
    ledger: Ledger | None
    """Rank 0's."""
    index: Index
    """Of the training photos."""
    hosts: Sequence[str]
    """Of each rank."""
    evaluations: Evaluations | None


def callbacks(parts: Parts) -> list[Callback]:
    """All of them on this rank. What only shows the run comes before what decides on it; a lost lease before all."""
    trainer, log = parts.trainer, parts.trainer.log
    shown = list(_displays(parts)) if trainer.world.is_main else []
    return [
        Startup(parts.laps, log),
        PhaseStarts(log),
        parts.audit,
        LeaseWatch(trainer.attempt),
        *shown,
        *_deciding(parts),
    ]


def _displays(parts: Parts) -> Iterator[Callback]:
    config, trainer, world = parts.config, parts.trainer, parts.trainer.world
    log, monitor = trainer.log, parts.config.monitor
    stragglers = Stragglers(parts.hosts, share=monitor.straggler_share, seconds=monitor.straggler_s)
    yield StragglerWatch(stragglers, log)
    board = TensorBoard(
        trainer.folder.tensorboard,
        config,
        first_step=trainer.first_step,
        device=world.device,
        shares=dict if parts.ledger is None else parts.ledger.shares,
        slowest_host=lambda: stragglers.ratio,
        judged=lambda: parts.doctor.judged,
    )
    yield board
    if monitor.pictures_every:
        faces = load_index(config.data.val, config.data.cache) if config.data.val else parts.index
        grid = PictureGrid(faces, config, world.device)
        yield Pictures(grid, trainer.step.shown, trainer.folder.pictures, monitor.pictures_every, board)
    if monitor.progress:
        yield Progress(first_step=trainer.first_step, steps=trainer.schedule.steps, global_batch=config.global_batch)
    # The last: it sees what the others lost.
    yield Unprinted(log)


def _deciding(parts: Parts) -> Iterator[Callback]:
    """On every rank, as they use collectives and decide alike."""
    config, trainer, world = parts.config, parts.trainer, parts.trainer.world
    log, health, contest = trainer.log, trainer.health, trainer.step.contest
    rollback = Rollback(trainer.checkpoints, health, log, on_rewind=trainer.callbacks.on_rewind)
    patient = Patient(
        contest,
        health,
        lambda: build_discriminators(config).state_dict(),
        steps=trainer.schedule.steps,
        window=config.doctor.window,
        rollbacks=config.engine.rollbacks,
    )
    yield GradientBalance(contest.balance)
    yield SampleWatch(config, world, trainer.folder.journal, health, log)
    yield StopSignals(trainer.stop, world, log)
    yield GradientWatch(config.engine, world, health, rollback, log, journal=trainer.folder.journal)
    yield Treatment(parts.doctor, patient, rollback, log)
    if parts.evaluations is not None:
        show = trainer.callbacks.on_evaluation
        yield EvaluationOnTheWay(parts.evaluations, trainer.step.shown, log, show=show)
