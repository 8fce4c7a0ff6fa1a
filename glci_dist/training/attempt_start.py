"""The start of an attempt: loads the newest checkpoint, if there is one, and reports what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from glci_dist.checkpoints.manifest import Checkpoint
from glci_dist.cluster.world import World, has_bf16
from glci_dist.config import Config
from glci_dist.models.build import unused_settings
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.events import Resumed, Started
from glci_dist.runs.folder import RunFolder
from glci_dist.training.adversarial_weight import AdversarialWeight
from glci_dist.training.checkpointer import Checkpointer
from glci_dist.training.phases import Schedule
from glci_dist.training.resume_changes import ResumeChanges, changes_of_steps, find_missing_checkpoint
from glci_dist.training.resume_checkpoint import check_configuration, saved_configuration
from glci_dist.training.run_log import RunLog
from glci_dist.training.startup_timer import StartupTimer


@dataclass
class AttemptStart:
    """The start of one attempt; every rank has one."""

    config: Config
    world: World
    folder: RunFolder
    attempt: Attempt
    schedule: Schedule
    checkpoints: Checkpointer
    log: RunLog
    changes: ResumeChanges = field(default_factory=ResumeChanges)
    """Changes since the run was left."""
    converted: Mapping[str, int] = field(default_factory=dict)
    """Number of converted batch norms in the user's own networks, by network."""
    checkpoint: Checkpoint | None = None
    """The checkpoint that was loaded."""

    @property
    def first_step(self) -> int:
        return self.checkpoint.step if self.checkpoint is not None else 0

    def resume(self, adversarial_weight: AdversarialWeight, startup: StartupTimer) -> None:
        """Load the newest checkpoint, if there is one."""
        self.changes.missing_checkpoint = find_missing_checkpoint(self.folder.path) if self.world.is_main else None
        found = self.checkpoints.newest()
        startup.record("verifying the checkpoint")
        if found is None:
            return
        check_configuration(found, self.config)
        self.checkpoints.load(found)
        self.checkpoint, self.checkpoints.first_step = found, found.step
        before = saved_configuration(found).config
        self.changes.schedule = changes_of_steps(found.step, before, self.config)
        adversarial_weight.renumber_phase(Schedule(before.phases).names, self.schedule.names)
        startup.record("reading the checkpoint")

    def report_complete(self) -> None:
        """Report that no step is left to run."""
        self.log.event(Resumed(self.first_step, self.world.size))
        self._report_changes()
        self.log.say(f"{self.folder.path} is complete: {self.schedule.steps} steps are done")

    def report(self) -> None:
        """Report the start or the resume, and on which hardware; every rank calls it."""
        engine, world, resumed = self.config.engine, self.world, self.checkpoint
        kind: type[Resumed | Started] = Resumed if resumed else Started
        self.log.event(kind(self.first_step, world.size, str(world.device), engine.precision))
        self._report_changes()
        batch = self.schedule.at(self.first_step).batch
        from_world = f" (saved by {resumed.manifest.world_size} rank(s))" if resumed else ""
        self.log.say(
            f"{kind.name} {self.folder.path} at step {self.first_step} of {self.schedule.steps}{from_world}: "
            f"attempt {self.attempt.number}, {world.size} rank(s), "
            f"{world.device.type}, {engine.precision}, ZeRO stage {engine.zero_stage}, "
            f"{batch // world.size} of {batch} slots a rank"
        )
        if unused := unused_settings(self.config):
            self.log.say(f"model.completion: the chosen network does not use {', '.join(unused)}")
        for network, count in self.converted.items():
            self.log.say(f"{network}: {count} of torch's batch norms were converted to those over the global batch")
        if world.device.type == "cpu" and engine.precision == "bf16" and not has_bf16():
            self.log.say("this processor has no instructions for bf16: engine.precision=fp32 is many times faster here")
        if resumed is None and "rollback" in (engine.not_finite, engine.spike, *vars(self.config.doctor).values()):
            # For a rollback before the first regular checkpoint.
            self.checkpoints.save(step=0, phase=self.schedule.at(0).phase)

    def _report_changes(self) -> None:
        resumed = self.checkpoint
        for event in self.changes.events(self.first_step):
            self.log.event(event)
        for line in self.changes.lines(self.folder, resumed_at=resumed.step if resumed else None):
            self.log.say(line)
