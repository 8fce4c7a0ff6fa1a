"""Runs a configuration to its end, in the process group of a launcher."""

from __future__ import annotations

from glci_dist.cluster.elastic import FailureRole, notify_ending, on_ending, write_error_file
from glci_dist.cluster.signals import stop_request
from glci_dist.cluster.world import joined
from glci_dist.config import Config
from glci_dist.errors import Ending
from glci_dist.training.readable_errors import is_from_lost_peer, readable_error
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
            readable = readable_error(error, world)
            notify_ending(str(readable), FailureRole.LOST if is_from_lost_peer(error, world) else FailureRole.BROKE)
            if isinstance(readable, Ending) and readable is not error:
                if is_from_lost_peer(error, world):
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
