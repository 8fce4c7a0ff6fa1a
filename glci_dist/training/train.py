"""Runs a configuration to its end, in the process group of a launcher."""

from __future__ import annotations

import torch

from glci_dist.cluster.elastic import FailureRole, notify_ending, on_ending, write_error_file
from glci_dist.cluster.signals import stop_request
from glci_dist.cluster.world import World, is_lost_peer, joined
from glci_dist.config import Config
from glci_dist.errors import Ending, Fault, UserError, is_short_of_files
from glci_dist.training.setup import prepare
from glci_dist.training.startup_timer import StartupTimer
from glci_dist.training.trainer import Trainer


def train(config: Config) -> None:
    """Train from the last checkpoint, or from the start, to the end of the schedule.

    Raises ``UserError`` for what cannot be done, ``Interrupted`` if a signal stopped the run (its
    state is saved), ``Superseded`` if a newer attempt owns it, ``Fault`` if the run cannot continue.
    """
    startup = StartupTimer()
    startup.record("imports")
    with joined(config.engine) as world, stop_request(config.checkpoints.stop_within_s) as stop:
        startup.record("joining the world")
        try:
            ending = _train(prepare(config, world, startup, stop))
            if ending is not None:
                raise ending
        except BaseException as error:
            readable = _readable_error(error, world)
            notify_ending(str(readable), FailureRole.LOST if _is_from_lost_peer(error, world) else FailureRole.BROKE)
            if isinstance(readable, Ending) and readable is not error:
                if _is_from_lost_peer(error, world):
                    write_error_file(str(readable), FailureRole.LOST)
                raise readable from error
            raise
        finally:
            on_ending(None)


def _train(trainer: Trainer) -> Exception | None:
    try:
        if trainer.end_if_complete():
            return None
        trainer.start.report()
        return trainer.run()
    finally:
        trainer.close()


def _is_from_lost_peer(error: BaseException, world: World) -> bool:
    """Whether this rank's error was caused by the end of another rank."""
    return isinstance(error, RuntimeError) and is_lost_peer(error, world.size)


def _readable_error(error: BaseException, world: World) -> Exception:
    """``error`` with a message for the journal; a ``Fault`` or ``UserError`` if one line is enough."""
    if isinstance(error, Ending):
        return error
    here = f"rank {world.rank} on {world.host}"
    if _is_from_lost_peer(error, world):
        why = f"{here} lost another rank, whose own message says why"
        return Fault(f"{why}; the same command goes on from the last checkpoint", one_rank=True)
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if is_short_of_files(said):
        return UserError(f"{here} cannot go on ({said})", one_rank=True)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in said:
        return Fault(
            f"{here} is out of memory ({said}): use more ranks, engine.accumulation, fewer data.workers or a smaller "
            "global_batch; the same command goes on from the last checkpoint",
            one_rank=True,
        )
    return RuntimeError(f"{here}: {said}")
