"""A run that is ready to go on: its parts, and what the loop asks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glci_dist import compose
from glci_dist.checkpoints import reading
from glci_dist.checkpoints.manifest import Checkpoint, Damaged, Unreadable
from glci_dist.checkpoints.retention import Retention
from glci_dist.checkpoints.saver import Saved, Saver
from glci_dist.checkpoints.state import Part, State
from glci_dist.cluster import collectives
from glci_dist.cluster.signals import StopRequest
from glci_dist.cluster.world import World, has_bf16
from glci_dist.config import Config
from glci_dist.data.batch import Batch
from glci_dist.errors import Fault, Interrupted, Superseded, UserError
from glci_dist.evaluation.result import brief
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.endings import Endings
from glci_dist.runs.folder import RunFolder
from glci_dist.runs.ledger import Ledger
from glci_dist.training.differences import Differences, missing_checkpoint
from glci_dist.training.doctor import Doctor
from glci_dist.training.ema import MovingAverage
from glci_dist.training.engines import Engine
from glci_dist.training.evaluations import Evaluations
from glci_dist.training.health import Health
from glci_dist.training.heartbeat import Report
from glci_dist.training.history import History
from glci_dist.training.moves import moves
from glci_dist.training.observers import Observer, TensorBoard
from glci_dist.training.phases import Moment, Schedule
from glci_dist.training.replaced import Replaced
from glci_dist.training.resuming import check_configuration, newest_whole, refuse_unreadable, saved_under
from glci_dist.training.save_reports import SaveReports
from glci_dist.training.startup import Laps
from glci_dist.training.stragglers import Stragglers
from glci_dist.training.updates import Contest, DeviceBatch, Measures, to_device
from glci_dist.urls import without_secrets


@dataclass
class Job:
    """A run that is ready to go on at ``first_step``; every rank holds one."""

    config: Config
    world: World
    folder: RunFolder
    attempt: Attempt
    schedule: Schedule
    contest: Contest
    average: MovingAverage | None
    stream: Callable[[Sequence[int]], Iterable[Batch]]
    """The batches of this rank at some steps."""
    health: Health
    endings: Endings
    """Where this rank writes down why the attempt ends."""
    differences: Differences = field(default_factory=Differences)
    """From how the run was left."""
    hosts: Sequence[str] = ()
    """Of each rank."""
    laps: Laps = field(default_factory=Laps)
    evaluations: Evaluations | None = None
    first_step: int = 0
    observers: list[Observer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replaced = Replaced(self.config.data.shards, self.folder.journal, self.tell)
        self.doctor = Doctor(self.config.doctor, self.config.global_batch)
        self._resumed: Checkpoint | None = None
        self._before, self._own = History(), History()
        self._events = self.endings.journal
        self._superseded = False
        self._troubled: set[str] = set()
        self._reports = SaveReports(self.journal, self.tell, self.config.checkpoints.stop_within_s)
        self._ledger = Ledger(self.attempt) if self.world.is_main else None
        monitor = self.config.monitor
        hosts = self.hosts or [self.world.host] * self.world.size
        self._stragglers = Stragglers(hosts, share=monitor.straggler_share, seconds=monitor.straggler_s)
        retention = Retention(self.config.checkpoints.keep, self.config.checkpoints.keep_every)
        self._saver = Saver(self.folder.checkpoints, self.attempt, self.world, retention, on_saved=self._tell_saved)
        if self.world.is_main and self.world.watch is not None:
            self.world.watch.every_second(self._every_second)

    def batches(self, step: int) -> Iterable[Batch]:
        """This rank's batches from ``step`` on, without those of steps that are passed over."""
        over = set(self.health.passed_over)
        steps = range(step, self.schedule.steps)
        return self.stream([each for each in steps if each not in over] if over else steps)

    def to_device(self, batch: Batch) -> DeviceBatch:
        """This rank's share of a step, on its device."""
        return to_device(batch, self.world.device, self.world.slots(self.config.global_batch))

    def follow(self, measures: Measures, batch: Batch | None, step: int) -> None:
        """Take down whose samples were used; let the moving average follow an applied completion update."""
        if batch is not None:
            slots = self.world.slots(self.config.global_batch)
            self._own = self._own.used(step, slots, batch.keys)
        if self.average is not None and measures.completion is not None and measures.completion.applied:
            self.average.follow(self.contest.completion.network, step)

    def observe(self, report: Report) -> None:
        """Show a report to the observers; a disk that is full, say, is told once and ends nothing."""
        if self._ledger is not None:
            self._ledger.see(report.moment.step, report)
            slow = self._stragglers.see(report.own_seconds)
            if slow is not None:
                details = {"slowest": slow.host, "ratio": round(slow.ratio, 3), "seconds": round(slow.seconds, 1)}
                self.journal("straggler", report.moment.step, **details)
                self.tell(
                    f"{slow.host} has needed {slow.ratio:.2f} times the other hosts' time a step for "
                    f"{slow.seconds:.0f} s: all wait for it"
                )
        for observer in self.observers:
            self._show(observer, report.moment.step, partial(observer.see, report))

    def evaluate_if_due(self, moment: Moment) -> None:
        """Measure the network, or its moving average, on held-out photos where that is due; every rank calls it."""
        if self.evaluations is None or not self.evaluations.is_due(moment):
            return
        network = self.average.network if self.average is not None else self.contest.completion.network
        try:
            figures = self.evaluations.take(network)
        except UserError as error:
            # Every rank has it: a held-out photo that is broken, say, is no reason to end the run.
            self.journal("not-evaluated", moment.step, error=str(error))
            self.tell(f"no evaluation after step {moment.step}: {error}; training goes on")
            return
        if not figures:
            return
        self.journal("evaluation", moment.step, **{name: round(value, 6) for name, value in figures.items()})
        self.tell(f"evaluation after step {moment.step}: {brief(figures)}")
        for observer in self.observers:
            if isinstance(observer, TensorBoard):
                self._show(observer, moment.step, partial(observer.add_figures, figures, moment.step))

    def save_if_due(self, moment: Moment, *, must: bool) -> None:
        """Begin to save the state after ``moment``'s step where that is due; every rank calls it."""
        every, ahead, done = self.config.checkpoints.every, self.config.checkpoints.run_ahead, moment.step + 1
        if must or moment.ends_phase or (every and done % every == 0):
            self._wait_for_save()
            self._saver.save(self.state(), step=done, phase=moment.phase, ends_phase=moment.ends_phase)
        saving = self._saver.saving
        if saving is not None and ahead >= 0 and done - saving >= ahead:
            # Each rank by itself: that a newer attempt forbade the save, the heartbeat tells all.
            collectives.begin("waiting for a save", patient=True)
            self._saver.pause()

    def may_go_back(self) -> bool:
        """Whether a rollback may help; waits for the save under way, which may be what it would go back to."""
        self._wait_for_save()
        return self.health.may_go_back(self._saver.committed or 0)

    def _wait_for_save(self) -> None:
        collectives.begin("waiting for an earlier save", patient=True)
        self._saver.wait()

    def state(self) -> State:
        """This rank's view of what a checkpoint holds."""
        whole: dict[str, Tensor] = {}
        parts: dict[str, Part] = {}
        for name, network in self.networks().items():
            whole |= {f"{name}/{key}": tensor for key, tensor in network.state_dict().items()}
        numbers: dict[str, Any] = {}
        for side, engine in self._engines().items():
            found, numbers[side] = engine.optimizer_parts(self.world)
            parts |= {f"{_prefix(side)}{name}": part for name, part in found.items()}
        used = self.world.to_main(self._own)
        facts = {
            "optimizers": numbers,
            "health": self.health.state(),
            "balance": self.contest.balance.state(),
            "doctor": self.doctor.state_dict(),
            "samples": sum(used, self._before).to_json(),
            "zero_stage": self.config.engine.zero_stage,
            "config": compose.to_yaml(self.config),
        }
        return State(whole, parts, facts)

    def load(self, checkpoint: Checkpoint, *, going_back: bool = False) -> None:
        """Take up a checkpoint's state, of any world and ZeRO stage; ``going_back``: in the middle of a run.

        Rank 0 has verified it; each other rank verifies what it reads, which its own host gave it.
        """
        facts, problem = checkpoint.manifest.facts, None
        collectives.begin("reading the checkpoint", patient=True)
        try:
            reading.load_networks(checkpoint, self.networks(), verified=self.world.is_main)
            vectors = reading.SavedVectors(checkpoint, verified=self.world.is_main)
            for side, engine in self._engines().items():
                engine.load_optimizer(vectors, _prefix(side), facts["optimizers"][side], self.world)
        except (Damaged, Unreadable, OSError) as error:
            problem = f"rank {self.world.rank} on {self.world.host}: {error}"
        refuse_unreadable(checkpoint, self.world.to_all(problem))
        self.health.load(facts["health"])
        # Checkpoints of before there were these are those of runs that had nothing of the kind.
        if "balance" in facts:
            self.contest.balance.load(facts["balance"])
        if "doctor" in facts:
            self.doctor.load(facts["doctor"], keep_factors=going_back)
        self._before, self._own = History.from_json(facts["samples"]), History()
        self._saver.committed = checkpoint.step
        self._saver.verified.add(checkpoint.step)

    def go_back(self, step: int, *, pass_over: bool = True) -> int:
        """Load the last checkpoint and pass over ``step``, and as many before it as configured; the next step.

        ``pass_over``: False where it is not this step's samples that are to blame.
        """
        checkpoint = self.newest_checkpoint()
        if checkpoint is None:
            raise Fault(f"step {step}: there is no checkpoint to go back to: begin another run (name=...)")
        self.load(checkpoint, going_back=True)
        self.health.went_back(checkpoint.step)
        over = self.health.pass_over(step, since=checkpoint.step) if pass_over else range(0)
        self._saver.go_back(checkpoint.step)
        self.journal("rollback", step, to=checkpoint.step, passed_over=[over.start, over.stop])
        without = f"; steps {over.start} to {over.stop - 1} are passed over" if over else ""
        self.tell(f"step {step}: back to step {checkpoint.step}{without}")
        for observer in self.observers:
            observer.rewind(checkpoint.step)
        return checkpoint.step

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, the same on every rank; damaged ones are named and set aside."""
        collectives.begin("verifying checkpoints", patient=True)

        def look() -> Checkpoint | None:
            return newest_whole(self.folder.checkpoints, self.attempt, damaged=self._tell_damaged)

        # One rank looks, lest a slow network file system shows the ranks different folders.
        return self.world.once(look)

    @property
    def is_superseded(self) -> bool:
        """Whether this rank knows that a newer attempt owns the run."""
        return self._superseded or self._saver.is_superseded

    def end(self, step: int, ending: Exception | None, stop: StopRequest) -> Exception | None:
        """Wait for the last save and write down that the run ends before ``step``; why it ends early, if it does."""
        collectives.begin("waiting for the last checkpoint", step=step, patient=True)
        self._saver.wait()
        failed = self._saver.failed
        if failed is not None:
            resume = f"the newest checkpoint is of step {self._saver.committed or 0}"
            said = f"{ending}; " if ending else ""
            message = f"{said}the state could not be saved ({failed}): {resume}, the same command goes on from there"
            ending = type(ending)(message) if ending else Fault(message)
        elif ending is not None:
            again = ": run the same command again" if isinstance(ending, Interrupted) else ""
            ending = type(ending)(f"{ending}; the state is saved{again}")
        if ending is not None:
            waited = [seconds for seconds in self.world.to_main(stop.seconds) if seconds is not None]
            since = {"seconds": round(max(waited), 3)} if waited else {}
            self.endings.end("stopped", str(ending), step=step, **since)
        else:
            self.endings.end("end", step=step)
        return ending

    def take_stall_seconds(self) -> float:
        """Seconds that training waited for checkpoints since the last call."""
        seconds, self._saver.stall_seconds = self._saver.stall_seconds, 0.0
        return seconds

    def journal(self, event: str, step: int, **details: Any) -> None:
        """Write an event, on rank 0."""
        if self._events is None:
            return
        try:
            self._events.write(event, step=step, **details)
        except Superseded:
            # All ranks have to end alike: the heartbeat tells them.
            self._superseded = True

    def tell(self, line: str) -> None:
        """Print a line, on rank 0."""
        if self.world.is_main:
            print(without_secrets(line), flush=True)

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        self.differences.missing = missing_checkpoint(self.folder.path) if self.world.is_main else None
        self._resumed = self.newest_checkpoint()
        self.laps.lap("verifying the checkpoint")
        if self._resumed is not None:
            check_configuration(self._resumed, self.config)
            self.load(self._resumed)
            self.first_step = self._resumed.step
            before = saved_under(self._resumed).config.phases
            self.differences.moves = moves(self.first_step, before, self.config.phases)
            self.contest.balance.follow_phase(Schedule(before).names, self.schedule.names)
            self.laps.lap("reading the checkpoint")

    def end_if_complete(self) -> bool:
        """Whether no step is left to run; says so, and writes it down."""
        if self.first_step < self.schedule.steps:
            return False
        self.journal("resume", self.first_step, ranks=self.world.size)
        self._tell_differences()
        self.tell(f"{self.folder.path} is complete: {self.schedule.steps} steps are done")
        self.endings.end("end", step=self.first_step)
        return True

    def slowest_host(self) -> float:
        """The slowest host's own time a step over the others', of late (rank 0)."""
        return self._stragglers.ratio

    def time_shares(self) -> dict[str, float]:
        """Where the run's wall time went so far (rank 0)."""
        return self._ledger.shares() if self._ledger is not None else {}

    def begin(self) -> None:
        """Say and write down that the run starts, or goes on, and on what."""
        engine, world, resumed = self.config.engine, self.world, self._resumed
        event = "resume" if resumed else "start"
        self.journal(event, self.first_step, ranks=world.size, device=str(world.device), precision=engine.precision)
        self._tell_differences()
        from_world = f" (saved by {resumed.manifest.world_size} rank(s))" if resumed else ""
        self.tell(
            f"{event} {self.folder.path} at step {self.first_step} of {self.schedule.steps}{from_world}: "
            f"attempt {self.attempt.number}, {world.size} rank(s), "
            f"{world.device.type}, {engine.precision}, ZeRO stage {engine.zero_stage}, "
            f"{self.config.global_batch // world.size} of {self.config.global_batch} slots a rank"
        )
        if world.device.type == "cpu" and engine.precision == "bf16" and not has_bf16():
            self.tell("this processor has no instructions for bf16: engine.precision=fp32 is many times faster here")
        if resumed is None and "rollback" in (engine.not_finite, engine.spike, *vars(self.config.doctor).values()):
            # What a rollback before the first checkpoint goes back to.
            self._saver.save(self.state(), step=0, phase=self.schedule.at(0).phase, ends_phase=False)

    def _tell_differences(self) -> None:
        for event, details in self.differences.events():
            self.journal(event, self.first_step, **details)
        for line in self.differences.lines(self.folder, resumed_at=self._resumed.step if self._resumed else None):
            self.tell(line)

    def close(self) -> None:
        for observer in self.observers:
            observer.close()
        self.replaced.sum_up()
        if self._ledger is not None:
            self._ledger.write()

    def networks(self) -> dict[str, nn.Module]:
        """Every network of the run by its name in a checkpoint."""
        networks = {side: engine.network for side, engine in self._engines().items()}
        return networks if self.average is None else {**networks, "average": self.average.network}

    def _engines(self) -> dict[str, Engine]:
        return {"completion": self.contest.completion, "discriminator": self.contest.discriminators}

    def _show(self, observer: Observer, step: int, what: Callable[[], None]) -> None:
        try:
            what()
        except OSError as error:
            name = type(observer).__name__
            if name not in self._troubled:
                self._troubled.add(name)
                self.journal("not-shown", step, observer=name, error=str(error))
                self.tell(f"{name} could not write: {error}; training goes on")

    def _every_second(self) -> None:
        if self._ledger is not None:
            self._ledger.write()
        self._superseded = self._superseded or self.attempt.is_over()

    def _tell_damaged(self, path: Path, problem: str, aside: Path) -> None:
        where = str(aside.relative_to(self.folder.path))
        self.journal("damaged", self.first_step, checkpoint=path.name, problem=problem, set_aside=where)
        self.tell(f"{path} is damaged ({problem}): set aside as {where}")

    def _tell_saved(self, saved: Saved) -> None:
        """Write down what became of a save; called in the saving thread of rank 0."""
        for damaged in saved.damaged:
            self._tell_damaged(*damaged)
        self._reports.see(saved, newest=self._saver.committed or 0)


def _prefix(side: str) -> str:
    return f"{side}.optimizer/"
