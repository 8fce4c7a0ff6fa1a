"""Saves and loads a run's state (what is registered), and rolls back to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glci_dist import compose
from glci_dist.checkpoints.manifest import Checkpoint, Damaged, TemporarilyUnreadable, folder_name
from glci_dist.checkpoints.registry import CheckpointState, Registry
from glci_dist.checkpoints.saver import Saver, SaveResult
from glci_dist.cluster import collectives
from glci_dist.cluster.world import World
from glci_dist.config import Config
from glci_dist.errors import Fault, Interrupted
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.events import CheckpointDamaged, CheckpointFailed, CheckpointSaved, RetentionFailed, RolledBack
from glci_dist.runs.folder import RunFolder
from glci_dist.training.gradient_monitor import GradientMonitor
from glci_dist.training.phases import StepPlan
from glci_dist.training.resume_checkpoint import newest_intact
from glci_dist.training.run_log import RunLog


class Checkpointer:
    """The checkpoints of one attempt; every rank has one and calls its methods alike."""

    def __init__(
        self, config: Config, world: World, folder: RunFolder, attempt: Attempt, registry: Registry, log: RunLog
    ) -> None:
        self._config, self._world, self._folder, self._attempt = config, world, folder, attempt
        self._registry, self._log = registry, log
        # Once, as it takes some 30 ms, for which a save would hold up the training.
        self._config_text = compose.to_yaml(config)
        self._retention_error: str | None = None
        self._saver = Saver(folder.checkpoints, attempt, world, config.checkpoints, on_saved=self._on_saved)
        self.first_step = 0
        """The attempt's first step."""

    @property
    def is_superseded(self) -> bool:
        """Whether a save was refused because a newer attempt owns the run, as far as this rank knows."""
        return self._saver.is_superseded

    @property
    def newest_step(self) -> int:
        """Step of the run's newest checkpoint; 0 without one."""
        return self._saver.committed or 0

    def state(self) -> CheckpointState:
        """This rank's part of a checkpoint."""
        return self._registry.state(zero_stage=self._config.engine.zero_stage, config=self._config_text)

    def load(self, checkpoint: Checkpoint, *, rewind: bool = False) -> None:
        """Load a checkpoint, saved by any world size and ZeRO stage; ``rewind``: for a rollback.

        Rank 0 has verified it; each other rank verifies what its own host reads.
        """
        problem = None
        collectives.mark_progress("reading the checkpoint", unbounded=True)
        try:
            self._registry.load(checkpoint, verified=self._world.is_main, rewind=rewind)
        except (Damaged, TemporarilyUnreadable, OSError) as error:
            problem = f"rank {self._world.rank} on {self._world.host}: {error}"
        found = [each for each in self._world.all_gather_objects(problem) if each]
        if found:
            raise Fault(
                f"{checkpoint.path} is whole as rank 0 reads it, but not to {len(found)} other rank(s) "
                f"({found[0]}): look at what that host mounts; nothing is changed, the same command tries again"
            )
        self._saver.committed = checkpoint.step
        self._saver.verified.add(checkpoint.step)

    def newest(self) -> Checkpoint | None:
        """The newest intact checkpoint, the same on every rank; damaged ones are reported and set aside."""
        collectives.mark_progress("verifying checkpoints", unbounded=True)
        # On rank 0 alone, as a slow network file system may show the ranks different folders.
        return self._world.on_main(
            lambda: newest_intact(self._folder.checkpoints, self._attempt, damaged=self._report_damaged)
        )

    def save(self, *, step: int, phase: str, ends_phase: bool = False) -> None:
        """Start saving the state before ``step``."""
        self._saver.save(self.state(), step=step, phase=phase, ends_phase=ends_phase)

    def save_if_due(self, plan: StepPlan, *, must: bool) -> None:
        """Start saving the state after ``plan``'s step if a checkpoint is due, or ``must``."""
        every, ahead, done = self._config.checkpoints.every, self._config.checkpoints.run_ahead, plan.step + 1
        if must or plan.ends_phase or (every and done % every == 0):
            self.wait()
            self.save(step=done, phase=plan.phase, ends_phase=plan.ends_phase)
        saving = self._saver.saving
        if saving is not None and ahead >= 0 and done - saving >= ahead:
            # No collective: if a newer attempt owns the run, the step report tells all ranks.
            collectives.mark_progress("waiting for a save", unbounded=True)
            self._saver.join()

    def wait(self) -> None:
        """Wait for a running save."""
        collectives.mark_progress("waiting for an earlier save", unbounded=True)
        self._saver.wait()

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints after ``step``, from which the run continues."""
        self._saver.rewind(step)

    def finish(self, step: int, ending: Exception | None) -> Exception | None:
        """Wait for the last save; returns ``ending`` with a note on the saved state; a ``Fault`` if the save failed."""
        collectives.mark_progress("waiting for the last checkpoint", step=step, unbounded=True)
        self._saver.wait()
        failed = self._saver.failed
        if failed is not None:
            resume = f"the newest checkpoint is of step {self.newest_step}"
            said = f"{ending}; " if ending else ""
            message = f"{said}the state could not be saved ({failed}): {resume}, the same command goes on from there"
            return type(ending)(message) if ending else Fault(message)
        if ending is None:
            return None
        again = ": run the same command again" if isinstance(ending, Interrupted) else ""
        return type(ending)(f"{ending}; the state is saved{again}")

    def take_stall_seconds(self) -> float:
        """Seconds for which training waited for checkpoints since the last call."""
        seconds, self._saver.stall_seconds = self._saver.stall_seconds, 0.0
        return seconds

    def _report_damaged(self, path: Path, problem: str, aside: Path) -> None:
        where = str(aside.relative_to(self._folder.path))
        self._log.event(CheckpointDamaged(self.first_step, path.name, problem, set_aside=where))
        self._log.say(f"{path} is damaged ({problem}): set aside as {where}")

    def _on_saved(self, saved: SaveResult) -> None:
        """Report a finished save; called in the saving thread of rank 0."""
        for damaged in saved.damaged:
            self._report_damaged(*damaged)
        if saved.error is not None:
            self._log.event(CheckpointFailed(saved.step, saved.error))
            self._log.say(
                f"checkpoint of step {saved.step} could not be written ({saved.error}): training goes on, "
                f"and the checkpoint of step {self.newest_step} is kept"
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
        is_news, self._retention_error = saved.retention_error != self._retention_error, saved.retention_error
        if saved.retention_error is not None and is_news:
            self._log.event(RetentionFailed(saved.step, saved.retention_error))
            self._log.say(
                f"older checkpoints cannot be removed ({saved.retention_error}): all are kept, and the disk fills up"
            )
        within, seconds = self._config.checkpoints.stop_within_s, saved.copy_seconds + saved.write_seconds
        if 0 < within < seconds:
            self._log.say(
                f"saving took {seconds:.1f} s, more than checkpoints.stop_within_s={within:g}: "
                "a signal would end the run without saving; raise it, and the scheduler's lead"
            )


class Rollback:
    """Loads the last checkpoint and skips the offending steps, up to ``engine.rollbacks`` times in a row."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        gradient_monitor: GradientMonitor,
        log: RunLog,
        *,
        on_rewind: Callable[[int], None],
    ) -> None:
        """``on_rewind`` is called with the step from which the run continues."""
        self._checkpointer, self._gradient_monitor = checkpointer, gradient_monitor
        self._log, self._on_rewind = log, on_rewind

    def is_allowed(self) -> bool:
        """Whether another rollback is allowed; waits for a running save, as that would be the checkpoint to load."""
        self._checkpointer.wait()
        return self._gradient_monitor.may_roll_back(self._checkpointer.newest_step)

    def go_back(self, step: int, *, skip_step: bool) -> int:
        """Load the last checkpoint before ``step``; returns the step from which the run continues.

        Raises ``Fault`` if there is none.

        ``skip_step``: skip ``step`` and as many before it as ``engine.pass_over`` says; False if its samples are not
        the cause.
        """
        checkpoint = self._checkpointer.newest()
        if checkpoint is None:
            raise Fault(f"step {step}: there is no checkpoint to go back to: begin another run (name=...)")
        self._checkpointer.load(checkpoint, rewind=True)
        self._gradient_monitor.count_rollback(checkpoint.step)
        over = self._gradient_monitor.skip(step, since=checkpoint.step) if skip_step else range(0)
        self._checkpointer.delete_after(checkpoint.step)
        self._log.event(RolledBack(step, to=checkpoint.step, passed_over=(over.start, over.stop)))
        without = f"; steps {over.start} to {over.stop - 1} are skipped" if over else ""
        self._log.say(f"step {step}: back to step {checkpoint.step}{without}")
        self._on_rewind(checkpoint.step)
        return checkpoint.step
