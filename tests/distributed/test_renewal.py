"""Discriminators that overshoot begin anew: as at the run's start, on every rank, and over a resume."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glci_dist import compose
from glci_dist.cluster.world import joined
from glci_dist.diagnosis.tensorboard_reader import read_log
from glci_dist.models.build import build_discriminators
from glci_dist.training.engines import Engine
from glci_dist.training.setup import prepare
from glci_dist.training.train import train
from tests.distributed.recordings import weights
from tests.distributed.test_elastic import train_some
from tests.journal import read_journal
from tests.small_run import build_faces, final_files, newest_in, small
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
TOO_FAST = {
    "discriminator": ("phases.discriminator.discriminator_lr=0.3", "phases.joint.discriminator_lr=0.3"),
    "joint": ("phases.joint.discriminator_lr=0.3", "phases.joint.balance=0.5"),
}
"""By the phase that it shows in."""
BALANCED = (
    "global_batch=8",
    "doctor.asleep=balance",
    "doctor.window=16",
    "doctor.every=4",
    "phases.joint.discriminator_every=2",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_faces(tmp_path_factory.mktemp("faces"), photos=64, samples=16)


def renewed(overrides: list[str]) -> tuple[dict[str, Tensor], bool, dict[str, Tensor], dict[str, Tensor]]:
    """Discriminators after eight updates and a new beginning, whether they were far from it before, and after one
    update more; and those of a run that has only had that update."""
    config = compose.load(overrides)
    fresh = weights(discriminator=build_discriminators(config))
    moved, begun, after = False, {}, []
    with joined(config.engine) as world:
        for updates in (8, 0):
            trainer = prepare(config, world)
            engine: Engine = trainer.step.gan.discriminators
            plan = trainer.schedule.at(0)
            batches = trainer.batches.from_step(0)
            now = partial(weights, discriminator=engine.network)
            for _ in range(updates):
                trainer.step.gan.update(trainer.step.to_device(next(batches)), plan)
            if updates:
                moved = any(not tensor.equal(fresh[name]) for name, tensor in now().items())
                engine.reset(build_discriminators(config).state_dict())
                begun = now()
            (batch,) = trainer.batches.stream([9])
            trainer.step.gan.update(trainer.step.to_device(batch), plan)
            after.append(now())
            trainer.close()
    return begun, moved, after[0], after[1]


@pytest.mark.parametrize(("kind", "stage"), [("adam", 0), ("adam", 1), ("adadelta", 0), ("adadelta", 1), ("muon", 0)])
def test_they_are_what_they_were_at_the_runs_start(shards: Path, tmp_path: Path, kind: str, stage: int) -> None:
    chosen = (f"optimizers.discriminator.kind={kind}", f"engine.zero_stage={stage}")
    overrides = small(shards, tmp_path, steps=(0, 20, 1), extra=(*chosen, *TOO_FAST["discriminator"]))
    fresh = weights(discriminator=build_discriminators(compose.load(overrides)))
    for begun, moved, after, first in run_world(2, renewed, overrides):
        assert moved
        assert all(torch.equal(begun[name], tensor) for name, tensor in fresh.items())
        assert all(torch.equal(after[name], tensor) for name, tensor in first.items())


def train_with(overrides: list[str]) -> None:
    train(compose.load(overrides))


def renewals(run: Path) -> list[int]:
    """Before which steps the discriminators began anew."""
    return [event["step"] for event in read_journal(run) if event["event"] == "renewed"]


def facts(run: Path) -> dict[str, Any]:
    """What the last checkpoint remembers besides tensors, as far as the next steps are made of it."""
    saved = newest_in(run / "checkpoints")
    assert saved is not None
    return {name: saved.manifest.facts[name] for name in ("doctor", "balance", "health")}


@pytest.mark.parametrize("phase", TOO_FAST)
def test_a_run_in_which_they_do_is_bitwise_the_same_over_resumes(shards: Path, tmp_path: Path, phase: str) -> None:
    steps = (6, 24, 50)
    extra = (
        *TOO_FAST[phase],
        *BALANCED,
        "engine.spike_factor=1000",
        "engine.spike_window=4",
        "monitor.scalars_every=1",
    )
    whole, parts = (small(shards, tmp_path / name, steps=steps, extra=extra) for name in ("whole", "parts"))
    run_world(2, train_with, whole)
    begun = renewals(tmp_path / "whole" / "run")
    assert begun
    assert (begun[0] >= 30) == (phase == "joint")
    # In the step whose diagnosis they begin anew for, and while they learn alone.
    for stop_in in (begun[0] - 1, begun[0] + 3, None):
        run_world(2, train_some, parts, stop_in)
    resumed = [event["step"] for event in read_journal(tmp_path / "parts" / "run") if event["event"] == "resume"]
    assert resumed == [begun[0], begun[0] + 4]
    assert renewals(tmp_path / "parts" / "run") == begun
    ends = [
        (final_files(run, sum(steps)), facts(run)) for run in (tmp_path / name / "run" for name in ("whole", "parts"))
    ]
    assert ends[0] == ends[1]
    if phase == "joint":
        # The adversary that was weighed is no more: the first step that trains both sides again only measures.
        alphas = {point.step: point.scalars.get("phase/alpha") for point in read_log(tmp_path / "whole" / "run", {})}
        first = min(step for step in alphas if step >= begun[0] + 16)
        assert alphas[first] == 0
        assert alphas[first + 1] != 0


def test_a_rollback_for_them_begins_where_it_goes_back_to(shards: Path, tmp_path: Path) -> None:
    extra = (*TOO_FAST["joint"], *BALANCED, "doctor.asleep=rollback")
    run_world(2, train_with, small(shards, tmp_path, steps=(6, 24, 50), extra=extra))
    events = read_journal(tmp_path / "run")
    back = [(event["step"], event["to"]) for event in events if event["event"] == "rollback"]
    assert [to for _, to in back] == [30] * len(back)
    assert renewals(tmp_path / "run") == [30] * len(back)
    assert back
    assert events[-1]["event"] == "end"
    assert facts(tmp_path / "run")["doctor"]["renewals"] == len(back)


def test_they_stay_where_too_few_steps_are_left(shards: Path, tmp_path: Path) -> None:
    overrides = small(shards, tmp_path, steps=(6, 24, 4), extra=(*TOO_FAST["discriminator"], *BALANCED))
    run_world(2, train_with, overrides)
    (found, *_) = [event for event in read_journal(tmp_path / "run") if event["event"] == "diagnosis"]
    # 16 steps to themselves would be all of the contest, and more.
    assert (found["answer"], found["step"] + 1 + 16 >= 34) == ("balance", True)
    assert renewals(tmp_path / "run") == []


def test_a_stop_of_the_doctor_holds_where_a_signal_comes_in_the_same_step(shards: Path, tmp_path: Path) -> None:
    overrides = small(shards, tmp_path, steps=(6, 24, 1), extra=(*TOO_FAST["discriminator"], *BALANCED))
    stopped = [*overrides, "doctor.asleep=stop"]
    (_, losses, ending), _ = run_world(2, train_some, stopped, None)
    assert "doctor answered stop" in ending
    (_, again, also), _ = run_world(2, train_some, [*stopped, "name=signalled"], max(losses))
    assert list(again) == list(losses)
    assert "doctor answered stop" in also
    assert "stopped by" not in also
