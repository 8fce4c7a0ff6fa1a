"""A gradient that is not finite or jumps: skipped, stopped at, or gone back from, on every rank alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from glci_dist import compose
from glci_dist.cluster.signals import stop_request
from glci_dist.cluster.world import joined
from glci_dist.training.gan_step import DeviceBatch, GradientNormLimits, StepMeasurements
from glci_dist.training.phases import StepPlan
from glci_dist.training.setup import prepare
from tests.distributed.recordings import weights
from tests.journal import read_journal
from tests.small_run import newest_in, small
from tests.worlds import run_world

pytestmark = pytest.mark.distributed
STEPS = (9, 2, 4)


@dataclass(frozen=True)
class Ending:
    why: str
    weights: dict[str, Tensor]
    steps: list[int]
    """In the order in which they were run."""


def train(overrides: list[str], factors: dict[int, float], over: list[int], unsaved: Iterable[int] = ()) -> Ending:
    """Train with the photos of rank 1 multiplied at some steps, and with some steps passed over from the start.

    The checkpoints of ``unsaved`` cannot be written.
    """
    config = compose.load(overrides)
    steps: list[int] = []
    with joined(config.engine) as world, stop_request() as stop:
        trainer = prepare(config, world, stop=stop)
        for step in unsaved:
            (trainer.attempt.folder / f"step-{step:08d}.writing").touch()
        trainer.start.report()
        trainer.gradient_monitor.skipped_steps = sorted({*trainer.gradient_monitor.skipped_steps, *over})
        real = trainer.step.gan.update

        def update(batch: DeviceBatch, plan: StepPlan, limits: GradientNormLimits) -> StepMeasurements:
            steps.append(plan.step)
            if world.rank == 1 and plan.step in factors:
                batch = replace(batch, photos=batch.photos * factors[plan.step])
            return real(batch, plan, limits)

        patched: Any = trainer.step.gan
        patched.update = update
        ending = trainer.run()
        final = weights(**trainer.step.networks())
        trainer.close()
    return Ending("" if ending is None else f"{type(ending).__name__}: {ending}", final, steps)


def events(runs: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(runs / "run") if event["event"] == kind]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("kind", ["not-finite", "spike"])
def test_a_rollback_ends_as_a_run_that_passed_those_steps_over(
    faces_shards: str, tmp_path: Path, kind: str, stage: int
) -> None:
    extra = (
        f"engine.zero_stage={stage}",
        "engine.not_finite=rollback",
        "engine.spike=rollback",
        "engine.spike_factor=8",
        "engine.spike_window=3",
        "engine.pass_over=2",
        "checkpoints.every=3",
    )
    factor = {"not-finite": math.nan, "spike": 300.0}[kind]
    overrides = small(faces_shards, tmp_path / "troubled", steps=STEPS, extra=extra)
    one, other = run_world(2, train, overrides, {7: factor}, [])
    assert one.why == other.why == ""
    assert one.steps == other.steps == [*range(8), 8, *range(9, 15)]
    told = events(tmp_path / "troubled", kind)
    assert [(event["step"], event["answer"], event["networks"]) for event in told] == [(7, "rollback", ["completion"])]
    assert len(told[0]["keys"]) == 4
    (rollback,) = events(tmp_path / "troubled", "rollback")
    assert (rollback["step"], rollback["to"], rollback["passed_over"]) == (7, 6, [6, 8])

    plain = small(faces_shards, tmp_path / "plain", steps=STEPS, extra=extra)
    expected = run_world(2, train, plain, {}, [6, 7])[0]
    assert expected.steps == [*range(6), *range(8, 15)]
    assert same(one.weights, expected.weights)
    saved = newest_in(tmp_path / "troubled" / "run" / "checkpoints")
    assert saved is not None
    assert saved.manifest.facts["health"]["passed_over"] == [6, 7]
    assert saved.manifest.facts["samples"]["count"] == 4 * (15 - 2)


def test_before_the_first_checkpoint_a_rollback_goes_back_to_the_start(faces_shards: str, tmp_path: Path) -> None:
    overrides = small(faces_shards, tmp_path, steps=(4, 0, 0), extra=("engine.not_finite=rollback",))
    ending = run_world(2, train, overrides, {2: math.nan}, [])[0]
    assert ending.why == ""
    assert ending.steps == [0, 1, 2, 0, 1, 3]


def test_a_run_that_rolls_back_in_vain_stops_with_one_line(faces_shards: str, tmp_path: Path) -> None:
    extra = ("engine.not_finite=rollback", "engine.rollbacks=2")
    overrides = small(faces_shards, tmp_path, steps=(9, 0, 0), extra=extra)
    ending = run_world(2, train, overrides, dict.fromkeys(range(1, 9), math.nan), [])[0]
    assert ending.why.startswith("Fault: step 3: 2 rollbacks to the last checkpoint (engine.rollbacks) did not help")
    assert len(events(tmp_path, "rollback")) == 2


def test_saves_that_fail_do_not_make_a_run_roll_back_for_ever(faces_shards: str, tmp_path: Path) -> None:
    extra = ("engine.not_finite=rollback", "engine.rollbacks=2", "checkpoints.every=1")
    overrides = small(faces_shards, tmp_path, steps=(9, 0, 0), extra=extra)
    troubled = dict.fromkeys(range(1, 9), math.nan)
    ending = run_world(2, train, overrides, troubled, [], range(1, 10))[0]
    assert "2 rollbacks to the last checkpoint (engine.rollbacks) did not help" in ending.why
    assert [event["to"] for event in events(tmp_path, "rollback")] == [0, 0]
    assert events(tmp_path, "checkpoint-failed")


def test_a_checkpoint_in_between_makes_a_rollback_the_first_again(faces_shards: str, tmp_path: Path) -> None:
    extra = ("engine.not_finite=rollback", "engine.rollbacks=1", "checkpoints.every=1")
    overrides = small(faces_shards, tmp_path, steps=(6, 0, 0), extra=extra)
    ending = run_world(2, train, overrides, {1: math.nan, 3: math.nan}, [])[0]
    assert ending.why == ""
    assert [event["to"] for event in events(tmp_path, "rollback")] == [1, 3]


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("answer", ["skip", "stop"])
def test_an_update_beyond_the_limit_is_not_applied(faces_shards: str, tmp_path: Path, answer: str, stage: int) -> None:
    extra = (
        f"engine.zero_stage={stage}",
        f"engine.spike={answer}",
        "engine.spike_factor=8",
        "engine.spike_window=3",
        "engine.ema=0",
    )
    overrides = small(faces_shards, tmp_path / "troubled", steps=(6, 0, 0), extra=extra)
    ending = run_world(2, train, overrides, {4: 300.0}, [])[0]
    (told,) = events(tmp_path / "troubled", "spike")
    assert (told["step"], told["answer"]) == (4, answer)
    assert float(told["norms"][0]) > told["limits"][0]
    if answer == "stop":
        assert ending.why.startswith("Fault: step 4: 1 step(s) in a row had a gradient that jumped (norm ")
        assert ending.steps == [0, 1, 2, 3, 4]
        return
    assert ending.why == ""
    plain = small(faces_shards, tmp_path / "plain", steps=(6, 0, 0), extra=extra)
    assert same(ending.weights, run_world(2, train, plain, {}, [4])[0].weights)
