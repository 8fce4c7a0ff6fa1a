"""What changed since a resumed run was left: configuration, version, checkpoints, its step's place in the schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glci_dist.checkpoints.manifest import folder_name, newest_complete
from glci_dist.config import Config
from glci_dist.runs.events import CheckpointMissing, ConfigurationChanged, Event, OtherVersion, StepMoved
from glci_dist.runs.folder import RunFolder
from glci_dist.runs.journal import last_saved, read_journal
from glci_dist.training.resume_checkpoint import saved_configuration
from glci_dist.training.schedule_changes import schedule_changes


@dataclass
class ResumeChanges:
    """Printed, and written into the journal, before the first step."""

    configuration: Sequence[str] = ()
    """Accepted changes of the configuration since the run began."""
    version_notes: Sequence[str] = ()
    """Parts of the stored configuration that another version wrote."""
    missing_checkpoint: int | None = None
    """Step of the newest checkpoint in the journal, if its folder is missing."""
    schedule: Sequence[str] = ()
    """How changed phases move the step at which the run resumes."""

    def events(self, step: int) -> Iterator[Event]:
        """Journal events of a run that resumes at ``step``."""
        if self.configuration:
            yield ConfigurationChanged(step, tuple(self.configuration))
        if self.version_notes:
            yield OtherVersion(step, tuple(self.version_notes))
        if self.missing_checkpoint is not None:
            yield CheckpointMissing(step, folder_name(self.missing_checkpoint))
        if self.schedule:
            yield StepMoved(step, tuple(self.schedule))

    def lines(self, folder: RunFolder, *, resumed_at: int | None) -> Iterator[str]:
        """Lines for the screen."""
        yield from (f"accepted: {change}" for change in self.configuration)
        yield from (f"{folder.config_file} was written by another version, with {note}" for note in self.version_notes)
        if self.missing_checkpoint is not None:
            since = "begins at step 0" if resumed_at is None else f"goes on from step {resumed_at}"
            yield f"{folder.checkpoints / folder_name(self.missing_checkpoint)} is not there any more: the run {since}"
        yield from self.schedule


def expected_changes(folder: RunFolder, config: Config, corpus: str) -> Iterator[str]:
    """The lines that a run would print if it were started now, as far as is known without starting it.

    ``corpus``: digest of the shards. Raises ``UserError`` if the folder belongs to another configuration.
    """
    found = ResumeChanges(folder.check(config, corpus), folder.version_notes(), find_missing_checkpoint(folder.path))
    checkpoint, broken = newest_complete(folder.checkpoints)
    yield from (f"{path} is damaged ({problem})" for path, problem in broken)
    if checkpoint is None:
        yield from found.lines(folder, resumed_at=None)
        return
    found.schedule = schedule_changes(checkpoint.step, saved_configuration(checkpoint).config.phases, config.phases)
    yield from found.lines(folder, resumed_at=checkpoint.step)


def find_missing_checkpoint(run: Path) -> int | None:
    """Step of the newest checkpoint in the run's journal, if its folder is missing."""
    step = last_saved(read_journal(run))
    return None if step is None or (run / "checkpoints" / folder_name(step)).is_dir() else step or None
