"""A checkpoint is the whole state, to the bit, and one that was not finished is none."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glci_dist import compose
from glci_dist.cluster.world import World, joined
from glci_dist.config import EngineConfig
from glci_dist.errors import UserError
from glci_dist.training import checkpoints
from glci_dist.training.setup import build_contest, prepare
from glci_dist.training.updates import to_device
from tests.small_run import small
from tests.worlds import run_world

ALONE = EngineConfig(device="cpu", threads=1)


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two nests of dictionaries, lists and tensors differ."""
    if isinstance(one, torch.Tensor):
        return [] if one.equal(other) else [place]
    if isinstance(one, dict) and one.keys() == other.keys():
        return [line for key in one for line in differing(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [
            line for i, pair in enumerate(zip(one, other, strict=True)) for line in differing(*pair, f"{place}/{i}")
        ]
    return [] if one == other else [place]


def round_trip(overrides: list[str]) -> dict[str, list[str]]:
    """Train, save, load into new engines, go on with both: what differs."""
    config = compose.load(overrides)
    with joined(config.engine) as world:
        job = prepare(config, world)
        batches = [to_device(batch, world.device) for batch in job.batches]
        moments = [job.schedule.at(step) for step in range(job.schedule.steps)]
        for moment in moments[:-2]:
            job.contest.update(batches[moment.step], moment)
        job.save(moments[-3])
        found = checkpoints.latest(job.folder.checkpoints)
        assert found is not None
        assert (found.step, found.phase) == (moments[-2].step, "discriminator")

        fresh = build_contest(config, world)
        for network in (fresh.completion.network, fresh.discriminators.network):
            for parameter in network.parameters():
                nn.init.constant_(parameter, 0.123)
        pairs = (
            ("completion", job.contest.completion, fresh.completion),
            ("discriminator", job.contest.discriminators, fresh.discriminators),
        )
        checkpoints.load_networks(found, {name: engine.network for name, _, engine in pairs})
        states = checkpoints.load_optimizers(found, zero_stage=config.engine.zero_stage, world=world)
        for name, _, engine in pairs:
            engine.load_optimizer_state(states[name])

        differences: dict[str, list[str]] = {}

        def compare(when: str) -> None:
            for name, old, new in pairs:
                networks = (old.network.state_dict(), new.network.state_dict())
                differences[f"{name} {when}"] = differing(*networks)
                differences[f"{name} optimiser {when}"] = differing(
                    old.optimizer_state()["optimizer"], new.optimizer_state()["optimizer"]
                )

        compare("as loaded")
        for contest in (job.contest, fresh):
            for moment in moments[-2:]:
                contest.update(batches[moment.step], moment)
        compare("two steps later")
        differences["moments"] = [] if _optimizer_numbers(fresh.completion.optimizer_state()["optimizer"]) else ["none"]
    return differences


def _optimizer_numbers(state: dict[str, Any]) -> int:
    tensors = [t for entry in state["state"].values() for t in entry.values() if isinstance(t, torch.Tensor)]
    return sum(int((t != 0).sum()) for t in tensors)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 1])
def test_a_round_trip_gives_every_bit_back_and_the_next_steps_too(
    faces_shards: str, tmp_path: Path, stage: int
) -> None:
    overrides = small(faces_shards, tmp_path, steps=(2, 2, 1), extra=(f"engine.zero_stage={stage}",))
    for differences in run_world(2, round_trip, overrides):
        assert differences == {name: [] for name in differences}


def make_networks(value: float) -> dict[str, nn.Linear]:
    network = nn.Linear(30, 20)
    nn.init.constant_(network.weight, value)
    return {"completion": network}


def save(folder: Path, *, step: int, world: World) -> Path:
    return checkpoints.save(
        folder,
        step=step,
        phase="joint",
        networks=make_networks(step),
        optimizers={"completion": {"state": torch.full((4,), step)}},
        zero_stage=0,
        world=world,
    )


def save_some(folder: Path, steps: tuple[int, ...]) -> None:
    with joined(ALONE) as world:
        for step in steps:
            save(folder, step=step, world=world)


def save_and_be_killed(folder: Path, operation: int) -> None:
    """Save step 1, then step 2, in which the process is killed before its n-th operation on a file."""
    with joined(ALONE) as world:
        save(folder, step=1, world=world)
        left = operation

        def kill(event: str, details: tuple[Any, ...]) -> None:
            nonlocal left
            if any(str(folder) in str(detail) for detail in details):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(kill)
        save(folder, step=2, world=world)


def is_whole(found: checkpoints.Checkpoint) -> bool:
    """Whether every file of the manifest is there with its size and checksum, and its tensors are its step's."""
    files = json.loads((found.path / "manifest.json").read_text())["files"]
    for name, entry in files.items():
        content = (found.path / name).read_bytes()
        assert len(content) == entry["bytes"]
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    networks = make_networks(0)
    checkpoints.load_networks(found, networks)
    return bool((networks["completion"].weight == found.step).all()) and len(files) == 2


@pytest.mark.distributed
def test_a_process_killed_at_any_point_of_a_save_leaves_the_older_or_the_newer_one_whole(tmp_path: Path) -> None:
    latest = []
    for operation in range(50):
        folder = tmp_path / f"{operation:02d}"
        folder.mkdir()
        try:
            run_world(1, save_and_be_killed, folder, operation)
        except AssertionError as death:
            assert "died without an answer" in str(death)  # noqa: PT017
            killed = True
        else:
            killed = False
        found = checkpoints.latest(folder)
        assert found is not None
        assert is_whole(found)
        latest.append(found.step)
        if not killed:
            break

    # The older one up to the rename, the newer one after it, and only these.
    assert latest == sorted(latest)
    assert latest.count(1) >= 4
    assert not killed


@pytest.mark.distributed
def test_what_a_killed_save_left_behind_does_not_hinder_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".step-00000002.writing"
    left.mkdir()
    (left / "networks.safetensors").write_bytes(b"half")
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000002" / "networks.safetensors").write_bytes(b"half")
    run_world(1, save_some, tmp_path, (1, 2))

    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.step == 2
    assert is_whole(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.distributed
def test_the_latest_is_the_one_of_the_greatest_step_that_has_a_manifest(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    assert checkpoints.latest(tmp_path / "missing") is None
    run_world(1, save_some, tmp_path, (900, 1000, 12000))
    (tmp_path / "step-00013000").mkdir()
    (tmp_path / "step-00013000" / "networks.safetensors").write_bytes(b"half")

    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert (found.step, found.phase, found.world_size, found.zero_stage) == (12000, "joint", 1, 0)


@pytest.mark.distributed
def test_a_checkpoint_of_another_world_stage_or_network_is_refused(tmp_path: Path) -> None:
    run_world(1, save_some, tmp_path, (1,))
    found = checkpoints.latest(tmp_path)
    assert found is not None
    world = World(rank=0, size=2, local_rank=0, local_size=2, device=torch.device("cpu"))

    with pytest.raises(UserError, match=r"saved by 1 ranks with engine\.zero_stage=0, this is a world of 2 with 0"):
        checkpoints.load_optimizers(found, zero_stage=0, world=world)
    with pytest.raises(UserError, match="does not fit the configured completion network"):
        checkpoints.load_networks(found, {"completion": nn.Linear(3, 2)})
    before = copy.deepcopy(make_networks(7)["completion"].state_dict())
    other = make_networks(7)
    checkpoints.load_networks(found, {"completion": other["completion"]})
    assert differing(before, other["completion"].state_dict()) != []
