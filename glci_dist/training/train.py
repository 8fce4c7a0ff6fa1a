"""From a configuration to the end of its run, in the world that a launcher made."""

from __future__ import annotations

from glci_dist.cluster.elastic import FailureRole, notify_ending, on_ending, write_error_file
from glci_dist.cluster.signals import stop_request
from glci_dist.cluster.world import joined
from glci_dist.config import Config
from glci_dist.errors import Ending
from glci_dist.training.faults import in_words, is_lost
from glci_dist.training.setup import prepare
from glci_dist.training.startup_timer import StartupTimer
from glci_dist.training.trainer import Trainer


def train(config: Config) -> None:
    """Train from the last checkpoint, or from the start, to the end of the schedule.

    Raises ``UserError`` for what cannot be done, ``Interrupted`` where a signal stopped the run (its
    state is saved), ``Superseded`` where a newer attempt owns it, ``Fault`` where the run cannot go on.
    """
    startup = StartupTimer()
    startup.lap("imports")
    with joined(config.engine) as world, stop_request(config.checkpoints.stop_within_s) as stop:
        startup.lap("joining the world")
        try:
            ending = _train(prepare(config, world, startup, stop))
            if ending is not None:
                raise ending
        except BaseException as error:
            told = in_words(error, world)
            notify_ending(str(told), FailureRole.LOST if is_lost(error, world) else FailureRole.BROKE)
            if isinstance(told, Ending) and told is not error:
                if is_lost(error, world):
                    write_error_file(str(told), FailureRole.LOST)
                raise told from error
            raise
        finally:
            on_ending(None)


def _train(trainer: Trainer) -> Exception | None:
    try:
        if trainer.end_if_complete():
            return None
        trainer.resumption.announce()
        return trainer.run()
    finally:
        trainer.close()
