"""What changed since a resumed run was left: configuration, version, checkpoints, its step's place in the schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glci_dist.checkpoints.manifest import folder_name, newest_complete
from glci_dist.config import Config, PhaseConfig
from glci_dist.data.stages import photos_before
from glci_dist.runs.events import CheckpointMissing, ConfigurationChanged, Event, OtherVersion, StepMoved
from glci_dist.runs.folder import RunFolder
from glci_dist.runs.journal import last_saved, read_journal
from glci_dist.training.phases import Schedule, StepPlan, learning_rate_factor
from glci_dist.training.resume_checkpoint import saved_configuration


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
    before = saved_configuration(checkpoint).config
    found.schedule = changes_of_steps(checkpoint.step, before, config)
    yield from found.lines(folder, resumed_at=checkpoint.step)


def find_missing_checkpoint(run: Path) -> int | None:
    """Step of the newest checkpoint in the run's journal, if its folder is missing."""
    step = last_saved(read_journal(run))
    return None if step is None or (run / "checkpoints" / folder_name(step)).is_dir() else step or None


def changes_of_steps(step: int, before: Config, now: Config) -> list[str]:
    """``schedule_changes``, and what they do to the order of samples of a run that resumes at ``step``."""
    told = schedule_changes(step, before.phases, now.phases)
    had, has = (photos_before(config, step) for config in (before, now))
    if had != has and step < Schedule(now.phases).steps:
        told.append(
            f"the steps before step {step} have {has:,} photos now, {had:,} before: the order of samples goes on "
            "elsewhere, and photos of this epoch may come again or be left out"
        )
    return told


def schedule_changes(step: int, before: Mapping[str, PhaseConfig], now: Mapping[str, PhaseConfig]) -> list[str]:
    """The effects of changed phases on a run that resumes at ``step``, a line each; empty: none."""
    return list(_changes(step, before, now))


def _changes(step: int, before: Mapping[str, PhaseConfig], now: Mapping[str, PhaseConfig]) -> Iterator[str]:
    old, new = Schedule(before), Schedule(now)
    was, there = _at(old, step), _at(new, step)
    if not old.steps or (was is None and there is None):
        return
    stood = f"was in {_place(was, before)}" if was else f"was at the schedule's end ({old.steps} steps)"
    if there is None:
        assert was is not None
        yield f"step {step} {stood}, lies at or beyond the end of the {new.steps} steps now: no step is left to run"
        return
    place = (there.phase, there.phase_step)
    if was is None or place != (was.phase, was.phase_step):
        stands = f"step {step} {stood}, is in {_place(there, now)} now"
        yield f"{stands}, {now[there.phase].steps - there.phase_step} steps to go in it"
        ended = old.at(old.steps - 1)
        yield from _skipped(there, *((was.phase, was.phase_step) if was else (ended.phase, ended.phase_step + 1)))
        return
    if now[there.phase].steps != before[was.phase].steps:
        had, has = (phases[there.phase].steps - there.phase_step for phases in (before, now))
        yield f"step {step} is in {_place(there, now)} as before, with {has} steps to go in it where {had} were"
    factors = [learning_rate_factor(phases[there.phase], there.phase_step) for phases in (before, now)]
    if factors[0] != factors[1]:
        yield (
            f"phase {there.phase}'s schedule puts the learning rates of step {step} at {factors[1]:.3g} of their "
            f"peak now, {factors[0]:.3g} before"
        )


def _skipped(there: StepPlan, was_phase: str, was_step: int) -> Iterator[str]:
    """The steps of the new phase that are never run."""
    begun = was_step if there.phase == was_phase else 0
    if there.phase_step > begun:
        measured = there.balance and begun < there.balance_steps <= there.phase_step
        after = ", those that its balance is measured on among them: it is measured from here on" if measured else ""
        yield f"steps {begun} to {there.phase_step - 1} of phase {there.phase} are passed by{after}"


def _at(schedule: Schedule, step: int) -> StepPlan | None:
    return schedule.at(step) if step < schedule.steps else None


def _place(plan: StepPlan, phases: Mapping[str, PhaseConfig]) -> str:
    return f"phase {plan.phase} (step {plan.phase_step} of {phases[plan.phase].steps})"
