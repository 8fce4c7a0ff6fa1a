"""Reports finished saves on the screen and in the journal."""

from __future__ import annotations

from glci_dist.checkpoints.manifest import folder_name
from glci_dist.checkpoints.saver import SaveResult
from glci_dist.runs.events import CheckpointFailed, CheckpointSaved, RetentionFailed
from glci_dist.training.run_log import RunLog


class SaveReporter:
    """The saves of one attempt (rank 0)."""

    def __init__(self, log: RunLog, stop_within_s: float) -> None:
        self._log, self._stop_within_s = log, stop_within_s
        self._kept: str | None = None

    def report(self, saved: SaveResult, *, newest: int) -> None:
        """Report a finished save; ``newest``: step of the newest checkpoint."""
        if saved.error is not None:
            self._log.event(CheckpointFailed(saved.step, saved.error))
            self._log.say(
                f"checkpoint of step {saved.step} could not be written ({saved.error}): training goes on, "
                f"and the checkpoint of step {newest} is kept"
            )
            return
        self._log.event(
            CheckpointSaved(
                saved.step,
                phase=saved.phase,
                path=folder_name(saved.step),
                bytes=saved.bytes,
                copy_seconds=round(saved.copy_seconds, 4),
                write_seconds=round(saved.write_seconds, 4),
                deleted=saved.deleted,
            )
        )
        # Reported once, as it will probably recur at the next save, and nothing is lost by keeping more.
        is_news, self._kept = saved.retention_error != self._kept, saved.retention_error
        if saved.retention_error is not None and is_news:
            self._log.event(RetentionFailed(saved.step, saved.retention_error))
            self._log.say(
                f"older checkpoints cannot be removed ({saved.retention_error}): all are kept, and the disk fills up"
            )
        within, seconds = self._stop_within_s, saved.copy_seconds + saved.write_seconds
        if 0 < within < seconds:
            self._log.say(
                f"saving took {seconds:.1f} s, more than checkpoints.stop_within_s={within:g}: "
                "a signal would end the run without saving; raise it, and the scheduler's lead"
            )
