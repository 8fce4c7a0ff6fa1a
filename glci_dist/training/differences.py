"""What is not as a run was left when it goes on: its configuration, its checkpoints, where its step stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from glci_dist.checkpoints.manifest import folder_name, newest_complete
from glci_dist.config import Config
from glci_dist.runs.events import CheckpointMissing, ConfigurationChanged, Event, OtherVersion, StepMoved
from glci_dist.runs.folder import RunFolder
from glci_dist.runs.journal import last_saved, read_journal
from glci_dist.training.moves import moves
from glci_dist.training.resuming import saved_under


@dataclass
class Differences:
    """Said, and written down, before the first step."""

    changes: Sequence[str] = ()
    """In the configuration since the run began, accepted by the user."""
    notes: Sequence[str] = ()
    """What of the run's configuration another version wrote."""
    missing: int | None = None
    """Step of the newest checkpoint that the journal tells of, where it is not there any more."""
    moves: Sequence[str] = ()
    """What changed phases do to the step that the run goes on at."""

    def events(self, step: int) -> Iterator[Event]:
        """For the journal of a run that goes on at ``step``."""
        if self.changes:
            yield ConfigurationChanged(step, tuple(self.changes))
        if self.notes:
            yield OtherVersion(step, tuple(self.notes))
        if self.missing is not None:
            yield CheckpointMissing(step, folder_name(self.missing))
        if self.moves:
            yield StepMoved(step, tuple(self.moves))

    def lines(self, folder: RunFolder, *, resumed_at: int | None) -> Iterator[str]:
        """For the screen."""
        yield from (f"accepted: {change}" for change in self.changes)
        yield from (f"{folder.config_file} was written by another version, with {note}" for note in self.notes)
        if self.missing is not None:
            since = "begins at step 0" if resumed_at is None else f"goes on from step {resumed_at}"
            yield f"{folder.checkpoints / folder_name(self.missing)} is not there any more: the run {since}"
        yield from self.moves


def expected(folder: RunFolder, config: Config, corpus: str) -> Iterator[str]:
    """What a run would say of its differences if it were started now, as far as can be told without starting it.

    ``corpus``: the digest of its shards. Raises ``UserError`` where the folder is another configuration's.
    """
    found = Differences(folder.check(config, corpus), folder.version_notes(), missing_checkpoint(folder.path))
    checkpoint, broken = newest_complete(folder.checkpoints)
    yield from (f"{path} is damaged ({problem})" for path, problem in broken)
    if checkpoint is None:
        yield from found.lines(folder, resumed_at=None)
        return
    found.moves = moves(checkpoint.step, saved_under(checkpoint).config.phases, config.phases)
    yield from found.lines(folder, resumed_at=checkpoint.step)


def missing_checkpoint(run: Path) -> int | None:
    """Step of the newest checkpoint that the run's journal tells of, if it is not there."""
    step = last_saved(read_journal(run))
    return None if step is None or (run / "checkpoints" / folder_name(step)).is_dir() else step or None
