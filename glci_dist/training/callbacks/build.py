"""Constructs the configured callbacks, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from torch import Tensor

from glci_dist import components
from glci_dist.config import Config
from glci_dist.data.index import Index
from glci_dist.errors import UserError, in_a_line
from glci_dist.training.callbacks.accounts import Accounting, PhaseStarts, Startup, StragglerWatch
from glci_dist.training.callbacks.base import Callback
from glci_dist.training.callbacks.evaluation import Evaluations, PeriodicEvaluation
from glci_dist.training.callbacks.gradients import GradientWatch, MeasureAdversarialWeight
from glci_dist.training.callbacks.logging import Gauge, Logging, memory_gauges
from glci_dist.training.callbacks.pictures import Pictures
from glci_dist.training.callbacks.progress import LostOutput, Progress
from glci_dist.training.callbacks.samples import SampleWatch
from glci_dist.training.callbacks.stopping import LeaseWatch, StopSignals
from glci_dist.training.callbacks.treatment import DiagnoseTraining, Treatment
from glci_dist.training.checkpointer import Rollback
from glci_dist.training.loggers.base import Logger, RunInfo
from glci_dist.training.loggers.tensorboard import TensorBoard
from glci_dist.training.metric_registry import Metric
from glci_dist.training.startup_timer import StartupTimer
from glci_dist.training.stragglers import StragglerDetector
from glci_dist.training.trainer import Trainer


def custom_callbacks(config: Config, info: RunInfo) -> dict[str, Callback]:
    """The user's, by name; those that only show the run are made on rank 0 alone. Raises ``UserError``."""
    made: dict[str, Callback] = {}
    for component in components.by_name("callbacks", config.callbacks):
        if getattr(component.factory, "is_display", False) and info.rank:
            continue
        callback = component.make(Callback, run=info)
        _check(component.key, callback)
        made[component.name] = callback
    return made


def _check(key: str, callback: Callback) -> None:
    """Raise ``UserError`` for half a protocol of state, a state that cannot be saved, a display that decides."""
    kind = type(callback)
    if callback.is_display and kind.adjust is not Callback.adjust:
        raise UserError(f"{key}: a display is on rank 0 alone and may not adjust a step: set is_display = False")
    own = [name for name in ("state_dict", "load_state_dict") if getattr(kind, name) is not getattr(Callback, name)]
    if len(own) == 1:
        raise UserError(f"{key}: {kind.__name__} has {own[0]} alone: a state that is saved needs both")
    try:
        json.dumps({name: each for name, each in callback.state_dict().items() if not isinstance(each, Tensor)})
    except Exception as error:  # the user's class can raise anything
        raise UserError(f"{key}: its state cannot be saved: {in_a_line(error)}") from error


def custom_loggers(config: Config, info: RunInfo) -> list[Logger]:
    """The user's own. Raises ``UserError``."""
    return [each.make(Logger, run=info) for each in components.by_name("loggers", config.loggers)]


def callbacks(
    config: Config,
    trainer: Trainer,
    startup: StartupTimer,
    index: Index,
    hosts: Sequence[str],
    evaluations: Evaluations | None,
    loggers: Sequence[Logger] = (),
) -> list[Callback]:
    """All callbacks of this rank: first the lost lease, then those that record and display the step, then those that
    decide, then evaluations.

    ``index``: of the training photos. ``hosts``: of each rank. ``loggers``: the user's own, on rank 0.
    """
    log, world = trainer.log, trainer.world
    return [
        LeaseWatch(trainer.attempt),
        Startup(startup, log),
        PhaseStarts(log),
        trainer.audit,
        *(_displays(config, trainer, index, hosts, loggers) if world.is_main else ()),
        *_deciding(config, trainer),
        *trainer.custom.values(),
        *([] if evaluations is None else [_measuring(trainer, evaluations)]),
    ]


def _displays(
    config: Config, trainer: Trainer, index: Index, hosts: Sequence[str], loggers: Sequence[Logger]
) -> Iterator[Callback]:
    """On rank 0."""
    log, monitor, ledger = trainer.log, config.monitor, trainer.ledger
    assert ledger is not None
    yield Accounting(ledger)
    stragglers = StragglerDetector(hosts, share=monitor.straggler_share, seconds=monitor.straggler_s)
    yield StragglerWatch(stragglers, log)
    for logger in (TensorBoard(trainer.folder.tensorboard), *loggers):
        yield Logging(
            logger,
            config,
            trainer.metrics,
            gauges=(
                *memory_gauges(trainer.world.device),
                Gauge(Metric("time/slowest_host_ratio"), lambda: stragglers.ratio),
            ),
            shares=ledger.shares,
            last_finding=lambda: trainer.doctor.last_finding,
        )
    if monitor.pictures_every:
        network, device, show = trainer.step.eval_network, trainer.world.device, trainer.callbacks.on_picture
        yield Pictures(config, index, network, device, trainer.folder.pictures, show=show)
    if monitor.progress:
        yield Progress(trainer.metrics, trainer.schedule, first_step=trainer.first_step)
    # Last, to report output that the others lost.
    yield LostOutput(log)


def _deciding(config: Config, trainer: Trainer) -> Iterator[Callback]:
    """On every rank, as they use collectives and every rank must decide alike."""
    world, log, gradient_monitor, gan = trainer.world, trainer.log, trainer.gradient_monitor, trainer.step.gan
    rollback = Rollback(trainer.checkpoints, gradient_monitor, log, on_rewind=trainer.callbacks.on_rewind)
    yield MeasureAdversarialWeight(gan.adversarial_weight)
    yield SampleWatch(config, world, trainer.folder.journal, gradient_monitor, log)
    yield StopSignals(trainer.stop, world, log)
    yield GradientWatch(config.engine, world, gradient_monitor, rollback, log, journal=trainer.folder.journal)
    treatment = Treatment(config, trainer.doctor, gan, gradient_monitor, rollback, log, steps=trainer.schedule.steps)
    is_on = trainer.doctor.is_treating
    yield DiagnoseTraining(trainer.doctor, trainer.metrics, log, treat=treatment.treat if is_on else None)
    if is_on:
        yield treatment


def _measuring(trainer: Trainer, evaluations: Evaluations) -> Callback:
    show = trainer.callbacks.on_evaluation
    return PeriodicEvaluation(evaluations, trainer.step.eval_network, trainer.log, show=show)
