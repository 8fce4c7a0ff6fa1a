"""How an attempt begins: from the newest checkpoint, if there is one, and with a word on what is not as it was left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from glci_dist.checkpoints.manifest import Checkpoint
from glci_dist.cluster.world import World, has_bf16
from glci_dist.config import Config
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.events import Resumed, Started
from glci_dist.runs.folder import RunFolder
from glci_dist.training.balance import Balance
from glci_dist.training.checkpointer import Checkpointer
from glci_dist.training.differences import Differences, missing_checkpoint
from glci_dist.training.moves import moves
from glci_dist.training.phases import Schedule
from glci_dist.training.resuming import check_configuration, saved_under
from glci_dist.training.run_log import RunLog
from glci_dist.training.startup_timer import StartupTimer


@dataclass
class Resumption:
    """Of one attempt; every rank holds one."""

    config: Config
    world: World
    folder: RunFolder
    attempt: Attempt
    schedule: Schedule
    checkpoints: Checkpointer
    log: RunLog
    differences: Differences = field(default_factory=Differences)
    """From how the run was left."""
    converted: Mapping[str, int] = field(default_factory=dict)
    """Batch norms of the user's networks that were converted, by network."""
    checkpoint: Checkpoint | None = None
    """That the run goes on from."""

    @property
    def first_step(self) -> int:
        return self.checkpoint.step if self.checkpoint is not None else 0

    def resume(self, balance: Balance, startup: StartupTimer) -> None:
        """Go on from the newest checkpoint, if there is one."""
        self.differences.missing = missing_checkpoint(self.folder.path) if self.world.is_main else None
        found = self.checkpoints.newest()
        startup.lap("verifying the checkpoint")
        if found is None:
            return
        check_configuration(found, self.config)
        self.checkpoints.load(found)
        self.checkpoint, self.checkpoints.first_step = found, found.step
        before = saved_under(found).config.phases
        self.differences.moves = moves(found.step, before, self.config.phases)
        balance.follow_phase(Schedule(before).names, self.schedule.names)
        startup.lap("reading the checkpoint")

    def say_complete(self) -> None:
        """Say and write down that no step is left to run."""
        self.log.event(Resumed(self.first_step, self.world.size))
        self._tell_differences()
        self.log.say(f"{self.folder.path} is complete: {self.schedule.steps} steps are done")

    def announce(self) -> None:
        """Say and write down that the run starts, or goes on, and on what; every rank calls it."""
        engine, world, resumed = self.config.engine, self.world, self.checkpoint
        kind: type[Resumed | Started] = Resumed if resumed else Started
        self.log.event(kind(self.first_step, world.size, str(world.device), engine.precision))
        self._tell_differences()
        from_world = f" (saved by {resumed.manifest.world_size} rank(s))" if resumed else ""
        self.log.say(
            f"{kind.name} {self.folder.path} at step {self.first_step} of {self.schedule.steps}{from_world}: "
            f"attempt {self.attempt.number}, {world.size} rank(s), "
            f"{world.device.type}, {engine.precision}, ZeRO stage {engine.zero_stage}, "
            f"{self.config.global_batch // world.size} of {self.config.global_batch} slots a rank"
        )
        for network, count in self.converted.items():
            self.log.say(f"{network}: {count} of torch's batch norms were converted to those over the global batch")
        if world.device.type == "cpu" and engine.precision == "bf16" and not has_bf16():
            self.log.say("this processor has no instructions for bf16: engine.precision=fp32 is many times faster here")
        if resumed is None and "rollback" in (engine.not_finite, engine.spike, *vars(self.config.doctor).values()):
            # What a rollback before the first checkpoint goes back to.
            self.checkpoints.save(step=0, phase=self.schedule.at(0).phase)

    def _tell_differences(self) -> None:
        resumed = self.checkpoint
        for event in self.differences.events(self.first_step):
            self.log.event(event)
        for line in self.differences.lines(self.folder, resumed_at=resumed.step if resumed else None):
            self.log.say(line)
