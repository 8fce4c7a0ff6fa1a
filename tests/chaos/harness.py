"""The chaos run: kill, restart by the same command, count what is lost, compare the end."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from glci_dist import compose
from glci_dist.data.index import load_index
from glci_dist.data.stages import order_at
from glci_dist.data.store import ShardStore
from glci_dist.training.sample_digest import SampleDigest
from tests.commands import Command
from tests.journal import read_journal
from tests.small_run import newest_in, small

RANKS = 2
INTERVAL = 4
STAGES = ("copy", "write", "commit", "delete")


@dataclass(frozen=True)
class Kill:
    """One SIGKILL of the whole world."""

    where: str
    at_step: int
    """The step in hand; -1: none had begun."""
    resumed_at: int
    lost: int
    """Steps that had begun and were run again, the one in hand among them."""


@dataclass
class Outcome:
    kills: list[Kill] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    """Files of the last checkpoint that are not bitwise those of the undisturbed run."""
    samples: SampleDigest = field(default_factory=SampleDigest)
    """What the surviving history used."""
    scheduled: SampleDigest = field(default_factory=SampleDigest)
    """What the schedule has: each slot of each step once."""

    @property
    def most_lost(self) -> int:
        return max(kill.lost for kill in self.kills)


def chaos(
    shards: str,
    folder: Path,
    *,
    kills: int,
    steps: tuple[int, int, int],
    seed: int,
    tell: Callable[[str], None],
    is_fresh: bool = False,
) -> Outcome:
    """Run to the end undisturbed, and again with so many kills, by rotation at each stage and at random.

    ``is_fresh``: each command in new interpreters.
    """
    overrides = small(
        shards,
        folder / "undisturbed",
        steps=steps,
        extra=(
            "data.workers=1",
            "monitor.scalars_every=50",
            f"checkpoints.every={INTERVAL}",
            "checkpoints.run_ahead=1",
            "checkpoints.keep=2",
        ),
    )
    finish(overrides, folder, "undisturbed", is_fresh=is_fresh)
    disturbed = [each.replace(str(folder / "undisturbed"), str(folder / "disturbed")) for each in overrides]
    outcome, draw = Outcome(), random.Random(seed)
    aims = _aims(draw)
    for number in range(kills):
        where, aim, seconds = next(aims)
        at_step = kill_once(disturbed, folder, aim=aim, seconds=seconds, is_fresh=is_fresh)
        saved = newest_in(folder / "disturbed" / "run" / "checkpoints")
        resumed_at = saved.step if saved is not None else 0
        lost = max(0, at_step + 1 - resumed_at) if at_step >= 0 else 0
        outcome.kills.append(Kill(where, at_step, resumed_at, lost))
        tell(f"kill {number + 1:3d}: {where:<22} in step {at_step:>5}, resumes at {resumed_at:>5}, lost {lost}")
        if at_step >= sum(steps) - 2 * INTERVAL:
            raise AssertionError(f"the run of {sum(steps)} steps ended before {kills} kills: give it more")
    finish(disturbed, folder, "disturbed", is_fresh=is_fresh)
    for event in read_journal(folder / "disturbed" / "run"):
        assert event["event"] not in ("damaged", "checkpoint-failed"), event
    outcome.differing, outcome.samples = _compare(folder)
    outcome.scheduled = scheduled(overrides)
    return outcome


def finish(overrides: list[str], folder: Path, name: str, *, is_fresh: bool = False) -> None:
    """Run the command to its end."""
    command = Command(
        overrides,
        size=RANKS,
        log=folder / f"{name}.log",
        module="tests.chaos.rank",
        environment={"CHAOS_STEP": str(folder / "step")},
        is_fresh=is_fresh,
    )
    try:
        assert command.exit_codes(seconds=1200) == [0] * RANKS, command.said()
    finally:
        command.kill()


def kill_once(overrides: list[str], folder: Path, *, aim: str, seconds: float, is_fresh: bool = False) -> int:
    """Have the command killed where ``aim`` says, or ``seconds`` after its first step; returns the step in hand."""
    step_file = folder / "step"
    step_file.write_bytes(b"")
    command = Command(
        overrides,
        size=RANKS,
        log=folder / "disturbed.log",
        module="tests.chaos.rank",
        environment={"CHAOS_STEP": str(step_file), "CHAOS_AIM": aim},
        is_fresh=is_fresh,
    )
    deadline = time.monotonic() + 120
    try:
        if not aim:
            # Below zero: before the first step, so many seconds after the start.
            while seconds > 0 and not step_file.read_bytes() and command.ranks[0].poll() is None:
                assert time.monotonic() < deadline, command.said()
                time.sleep(0.01)
            time.sleep(abs(seconds))
        else:
            while command.ranks[0].poll() is None:
                assert time.monotonic() < deadline, command.said()
                time.sleep(0.01)
    finally:
        command.kill()
    for process in command.ranks:
        assert process.wait() == -9, f"{process.wait()}: {command.said()}"
    return int(step_file.read_bytes() or b"-1")


def scheduled(overrides: list[str]) -> SampleDigest:
    """The samples that the order has for every step, found without running anything."""
    config = compose.load(overrides)
    index = load_index(config.data.shards)
    store, history = ShardStore(index, config.data.cache), SampleDigest()
    for step in range(sum(phase.steps for phase in config.phases.values())):
        order, stage = order_at(index.counts, config, step)
        slots = range(stage.batch)
        keys = [f"{index.shards[s].name}/{store.sample(s, n)[0]}" for s, n in order.samples(step, slots)]
        history = history.with_samples(step, slots, keys)
    return history


def _aims(draw: random.Random) -> Iterator[tuple[str, str, float]]:
    """Where to kill: a name, an aim for ``rank.py`` or none, and the seconds where there is none."""
    number = 0
    while True:
        kind = (*STAGES, "random")[number % 5]
        number += 1
        if kind != "random":
            # Half of them at the very instant, the others within the stage or just after it.
            delay = 0.0 if draw.random() < 0.5 else draw.uniform(0, 0.01)
            yield f"{kind} +{delay * 1000:.1f} ms", f"{kind}:{draw.randint(1, 3)}:{delay}", 0.0
        elif draw.random() < 0.2:
            seconds = draw.uniform(0.5, 6)
            yield f"start +{seconds:.1f} s", "", -seconds
        else:
            seconds = draw.uniform(0.05, 4)
            yield f"steps +{seconds:.2f} s", "", seconds


def _compare(folder: Path) -> tuple[list[str], SampleDigest]:
    """Files of the two last checkpoints that differ, and the samples of the disturbed one."""
    one, other = (newest_in(folder / name / "run" / "checkpoints") for name in ("undisturbed", "disturbed"))
    assert one is not None
    assert other is not None
    assert one.step == other.step
    names = sorted({*one.manifest.files, *other.manifest.files})
    assert len(names) == 1 + RANKS
    differing = [name for name in names if (one.path / name).read_bytes() != (other.path / name).read_bytes()]
    sides = ("completion.optimizer", "discriminator.optimizer")
    steps = [[each.manifest.facts[side] for side in sides] for each in (one, other)]
    if steps[0] != steps[1]:
        differing.append("the optimisers' step counts")
    shutil.rmtree(folder / "undisturbed")
    return differing, SampleDigest.from_json(other.manifest.facts["samples"])
