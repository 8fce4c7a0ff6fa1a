"""Each mistake of benchmarks/history.py is in the program while it is asked for, and gone afterwards."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.history import FAILURES, overrides, train
from glci_dist import compose
from glci_dist.cluster.world import joined
from glci_dist.config import CacheConfig, DiscriminatorConfig, LossConfig, OrderConfig
from glci_dist.data.batch import Batch
from glci_dist.data.decode import decode
from glci_dist.data.index import load_index
from glci_dist.data.order import Order
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from glci_dist.models.batch_norm import BatchNorm2d
from glci_dist.models.discriminators import ContextDiscriminators
from glci_dist.training import gan_step, trainer
from glci_dist.training.gan_step import ADVERSARIAL, ADVERSARIAL_GRADIENT, COMPLETED_LOSS, REAL_LOSS, StepMeasurements
from glci_dist.training.setup import prepare
from tests.small_run import small
from tests.worlds import run_world

Found = TypeVar("Found")


def with_and_without(name: str, look: Callable[[], Found], data: str = "") -> tuple[Found, Found]:
    """What is seen with the mistake in the program, and after it."""
    swap = FAILURES[name].swap
    assert swap is not None
    with swap(argparse.Namespace(data=data)):
        wrong = look()
    return wrong, look()


def test_without_shuffling_every_epoch_has_the_same_order_by_brightness(faces_shards: str, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(faces_shards)
    index = load_index(faces_shards)
    store = ShardStore(index, CacheConfig())
    order = Order(index.counts, seed=0, global_batch=8, config=OrderConfig(lanes=1))

    def look() -> list[list[tuple[int, int]]]:
        epochs = (range(start, start + order.steps_per_epoch) for start in (0, order.steps_per_epoch))
        return [[sample for step in epoch for sample in order.samples(step, range(8))] for epoch in epochs]

    wrong, right = with_and_without("no-shuffle", look, str(tmp_path))
    assert len(set(wrong[0])) == len(set(right[0])) == 96
    assert wrong[0] == wrong[1]
    assert right[0] != right[1]
    brightness = [decode(store.sample(*sample)[1], short_edge=64).mean() for sample in wrong[0]]
    assert brightness == sorted(brightness)


def test_without_scale_batch_norm_only_normalises_and_learns_nothing() -> None:
    norm = BatchNorm2d(3)
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight.fill_(3.0)
        norm.bias.fill_(2.0)

    def look() -> tuple[float, float, float]:
        norm.zero_grad()
        y = norm(x)
        (y * x).sum().backward()
        assert norm.weight.grad is not None
        return float(y.detach().mean()), float(y.detach().std()), float(norm.weight.grad.abs().sum())

    wrong, right = with_and_without("no-scale", look)
    np.testing.assert_allclose(wrong, (0, 1, 0), atol=0.01)
    np.testing.assert_allclose(right[:2], (2, 3), atol=0.02)
    assert right[2] > 1


def test_real_patches_lie_at_the_holes() -> None:
    corners = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    boxes = torch.tensor([[[4, 4, 8, 8]]] * 2, dtype=torch.int32)
    photos = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    batch = Batch(0, range(2), 16, photos, boxes, torch.zeros(2, 0, 5), corners, corners + 5, None, ("a", "b"), ())

    def look() -> Tensor:
        return trainer.to_device(batch, torch.device("cpu")).real_patches

    wrong, right = with_and_without("same-place", look)
    assert torch.equal(wrong, corners)
    assert torch.equal(right, corners + 5)


def test_a_sigmoid_stands_before_the_loss_and_is_judged_by_its_own_threshold() -> None:
    network = ContextDiscriminators(size=16, patch=8, config=DiscriminatorConfig(width=0.1))
    photos = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def look() -> tuple[Tensor, float | None]:
        return network.logits(photos, photos[..., :8, :8]).detach(), gan_step.real_threshold(LossConfig())

    (wrong, half), (right, zero) = with_and_without("sigmoid", look)
    torch.testing.assert_close(wrong, torch.sigmoid(right))
    assert (half, zero) == (0.5, 0.0)


def contests(overrides: list[str]) -> dict[str, list[StepMeasurements]]:
    """A step of phase 2, then one of the contest, with each mistake and in the sound program."""
    found: dict[str, list[StepMeasurements]] = {}
    with joined(compose.load([*overrides, "name=none"]).engine) as world:
        for name in ("sound", "no contest", "leaking", "sigmoid", "detached"):
            swap = FAILURES[name].swap if name in FAILURES else None
            with swap(argparse.Namespace()) if swap is not None else nullcontext():
                run = prepare(compose.load([*overrides, f"name={name.replace(' ', '-')}"]), world)
                batch = run.step.to_device(next(run.batches.from_step(0)))
                plans = [run.schedule.at(1), replace(run.schedule.at(2), alpha=0.0 if name == "no contest" else 0.5)]
                found[name] = [run.step.gan.update(batch, plan) for plan in plans]
                run.close()
    return found


@pytest.mark.distributed
@pytest.mark.timeout(120)
def test_mistakes_of_the_contest_reach_its_gradients(faces_shards: str, tmp_path: Path) -> None:
    extra = ("losses.feature_matching=0.2", "monitor.progress=false")
    (found,) = run_world(1, contests, small(faces_shards, tmp_path, steps=(1, 1, 1), extra=extra), timeout=100)
    sound = found["sound"]

    def norms(name: str, step: int) -> tuple[float, float]:
        discriminator, completion = found[name][step].discriminator, found[name][step].completion
        assert discriminator is not None
        return discriminator.gradient_norm, completion.gradient_norm if completion is not None else 0.0

    # Nothing of the contest comes back, features neither, though its loss is shown.
    assert found["detached"][1].values[ADVERSARIAL] == sound[1].values[ADVERSARIAL]
    assert found["detached"][1].values[ADVERSARIAL_GRADIENT] == 0
    np.testing.assert_allclose(norms("detached", 1)[1], norms("no contest", 1)[1], rtol=1e-5)
    assert abs(norms("sound", 1)[1] / norms("no contest", 1)[1] - 1) > 1e-3
    # What leaks moves the discriminators in the contest alone, and is not in the loss that is shown.
    assert found["leaking"][1].values[COMPLETED_LOSS] == sound[1].values[COMPLETED_LOSS]
    assert norms("leaking", 0) == norms("sound", 0)
    assert abs(norms("leaking", 1)[0] / norms("sound", 1)[0] - 1) > 0.1
    # -log s(s(R)) lies between log(1 + 1/e) and log 2.
    assert 0.313 < float(found["sigmoid"][0].values[REAL_LOSS]) < 0.694


def test_too_fast_is_a_hundred_times_the_recipe() -> None:
    words = dict(word.split("=") for word in FAILURES["too-fast"].overrides)
    phases = compose.load(["data.shards=x"]).phases
    for phase in ("discriminator", "joint"):
        rate = float(words[f"phases.{phase}.discriminator_lr"])
        assert rate == pytest.approx(100 * phases[phase].discriminator_lr)


def test_more_of_phase_1_takes_as_long_as_the_phases_that_it_replaces(tmp_path: Path) -> None:
    events = [
        {"event": "phase", "step": 0, "phase": "completion", "time": 100.0},
        {"event": "running", "step": 0, "time": 101.0},
        {"event": "phase", "step": 11, "phase": "discriminator", "time": 111.0},
        {"event": "phase", "step": 15, "phase": "joint", "time": 113.0},
        {"event": "end", "step": 20, "time": 126.0},
    ]
    (tmp_path / "sound").mkdir()
    journal = tmp_path / "sound" / "journal.jsonl"
    arguments = argparse.Namespace(experiment="demo", data="x", runs=tmp_path, precision="fp32", overrides=[])
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    words = overrides(arguments, "more")
    # Ten steps took 10 s, the other phases 15 s.
    assert "phases.joint.steps=15" in words
    assert "phases.joint.steps" in words[-1]
    journal.write_text("".join(json.dumps(event) + "\n" for event in [*events, events[1]]))
    with pytest.raises(UserError, match="interrupted"):
        overrides(arguments, "more")


def test_a_run_of_other_settings_is_not_taken_for_an_answer(faces_shards: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(faces_shards)
    data, runs = str(tmp_path / "data"), tmp_path / "runs"
    arguments = argparse.Namespace(experiment="demo", data=data, runs=runs, precision="fp32", overrides=[])
    (runs / "sound").mkdir(parents=True)
    (runs / "sound" / "journal.jsonl").write_text(json.dumps({"event": "end", "step": 1, "time": 1.0}) + "\n")
    (runs / "sound" / "config.yaml").write_text(compose.to_yaml(compose.load(overrides(arguments, "sound"))))
    train(arguments, "sound")
    arguments.overrides = ["seed=1"]
    with pytest.raises(UserError, match="seed"):
        train(arguments, "sound")
