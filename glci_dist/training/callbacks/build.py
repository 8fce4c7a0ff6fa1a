"""The callbacks that a configuration asks for, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from glci_dist.config import Config
from glci_dist.data.index import Index, load_index
from glci_dist.training.callbacks.accounts import Accounting, PhaseStarts, Startup, StragglerWatch
from glci_dist.training.callbacks.base import Callback
from glci_dist.training.callbacks.evaluation import EvaluationOnTheWay
from glci_dist.training.callbacks.gradients import GradientBalance, GradientWatch
from glci_dist.training.callbacks.pictures import Pictures
from glci_dist.training.callbacks.progress import Progress, Unprinted
from glci_dist.training.callbacks.samples import SampleWatch
from glci_dist.training.callbacks.stopping import LeaseWatch, StopSignals
from glci_dist.training.callbacks.tensorboard import TensorBoard
from glci_dist.training.callbacks.treatment import Treatment
from glci_dist.training.checkpointer import Rollback
from glci_dist.training.evaluations import Evaluations
from glci_dist.training.pictures import PictureGrid
from glci_dist.training.startup import Laps
from glci_dist.training.stragglers import Stragglers
from glci_dist.training.trainer import Trainer


def callbacks(
    config: Config,
    trainer: Trainer,
    laps: Laps,
    index: Index,
    hosts: Sequence[str],
    evaluations: Evaluations | None,
) -> list[Callback]:
    """All of them on this rank: a lost lease first, then what takes down and shows the step, then what decides on it.

    ``index``: of the training photos. ``hosts``: of each rank.
    """
    log, world = trainer.log, trainer.world
    return [
        LeaseWatch(trainer.attempt),
        Startup(laps, log),
        PhaseStarts(log),
        trainer.audit,
        *(_displays(config, trainer, index, hosts) if world.is_main else ()),
        *_deciding(config, trainer),
        *_measuring(trainer, evaluations),
    ]


def _displays(config: Config, trainer: Trainer, index: Index, hosts: Sequence[str]) -> Iterator[Callback]:
    """On rank 0."""
    world, log, monitor, ledger = trainer.world, trainer.log, config.monitor, trainer.ledger
    assert ledger is not None
    yield Accounting(ledger)
    stragglers = Stragglers(hosts, share=monitor.straggler_share, seconds=monitor.straggler_s)
    yield StragglerWatch(stragglers, log)
    board = TensorBoard(
        trainer.folder.tensorboard,
        config,
        first_step=trainer.first_step,
        device=world.device,
        shares=ledger.shares,
        slowest_host=lambda: stragglers.ratio,
        judged=lambda: trainer.doctor.judged,
    )
    yield board
    if monitor.pictures_every:
        faces = load_index(config.data.val, config.data.cache) if config.data.val else index
        grid = PictureGrid(faces, config, world.device)
        yield Pictures(grid, trainer.step.shown, trainer.folder.pictures, monitor.pictures_every, board)
    if monitor.progress:
        yield Progress(first_step=trainer.first_step, steps=trainer.schedule.steps, global_batch=config.global_batch)
    # The last: it sees what the others lost.
    yield Unprinted(log)


def _deciding(config: Config, trainer: Trainer) -> Iterator[Callback]:
    """On every rank, as they use collectives and decide alike."""
    world, log, health, contest = trainer.world, trainer.log, trainer.health, trainer.step.contest
    rollback = Rollback(trainer.checkpoints, health, log, on_rewind=trainer.callbacks.on_rewind)
    yield GradientBalance(contest.balance)
    yield SampleWatch(config, world, trainer.folder.journal, health, log)
    yield StopSignals(trainer.stop, world, log)
    yield GradientWatch(config.engine, world, health, rollback, log, journal=trainer.folder.journal)
    yield Treatment(config, trainer.doctor, contest, health, rollback, log, steps=trainer.schedule.steps)


def _measuring(trainer: Trainer, evaluations: Evaluations | None) -> Iterator[Callback]:
    if evaluations is not None:
        show = trainer.callbacks.on_evaluation
        yield EvaluationOnTheWay(evaluations, trainer.step.shown, trainer.log, show=show)
