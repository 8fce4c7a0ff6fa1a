"""Each state of the contest is brought about in a real run, and named; a healthy run raises no alarm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glci_dist import compose
from glci_dist.training.train import train
from tests.distributed.recordings import tiny
from tests.journal import read_journal
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
STEPS = (60, 10, 60)

LEARNING = (
    "name=run",
    "phases.completion.completion_lr=2e-3",
    "phases.discriminator.discriminator_lr=1e-4",
    "phases.joint.completion_lr=2e-4",
    "phases.joint.discriminator_lr=1e-4",
    "phases.joint.lr_schedule=constant",
    "phases.joint.balance=0.5",
    "data.mean_colour=[0.5,0.5,0.5]",
)
"""A contest that goes well, at learning rates of a real run."""

_UNBALANCED = ("phases.joint.balance=0", "phases.joint.alpha=1", "phases.joint.reconstruction=0")
TROUBLES: dict[str, tuple[str, ...]] = {
    "discriminator dominates": ("phases.discriminator.discriminator_lr=1e-2", "phases.joint.discriminator_lr=1e-2"),
    "discriminator asleep": ("phases.discriminator.discriminator_lr=0", "phases.joint.discriminator_lr=0"),
    "no contest": ("phases.joint.balance=0", "phases.joint.alpha=1e-9"),
    "diverging": (*_UNBALANCED, "phases.joint.completion_lr=2e-2"),
    # So fast that the network loses sight of its input.
    "collapse": ("phases.joint.completion_lr=0.1",),
    # The reconstruction's error stays: without it some processors' rounding ends in a contest that diverges first.
    "checkerboard": (
        *("phases.joint.balance=0", "phases.joint.alpha=1", "phases.joint.completion_lr=1e-3"),
        "model.completion.enlarge=deconvolution",
    ),
}
RANKS = {"discriminator dominates": 2, "checkerboard": 2}
"""One does elsewhere: diagnoses are equal in every world (test_invariance.py)."""


def train_with(overrides: list[str]) -> None:
    train(compose.load(overrides))


def diagnoses(shards: str, folder: Path, extra: tuple[str, ...], *, ranks: int = 1) -> list[dict[str, Any]]:
    overrides = tiny(shards, str(folder), steps=STEPS, extra=(*LEARNING, *extra))
    run_world(ranks, train_with, overrides, timeout=250)
    return [event for event in read_journal(folder / "run") if event["event"] == "diagnosis"]


@pytest.mark.parametrize("state", TROUBLES)
def test_a_trouble_is_brought_about_and_named(faces_shards: str, tmp_path: Path, state: str) -> None:
    found = diagnoses(faces_shards, tmp_path, TROUBLES[state], ranks=RANKS.get(state, 1))
    for event in found:
        print(event["step"], event["state"], event["evidence"])
    assert state in [event["state"] for event in found]
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    shown = {event.step for event in board.Scalars(f"doctor/{state}") if event.value == 1}
    assert shown
    # A contest is in one state at a time.
    others = {tag for tag in board.Tags()["scalars"] if tag.startswith("doctor/")} - {f"doctor/{state}"}
    assert len(others) == 6
    assert all(event.value == 0 for tag in others for event in board.Scalars(tag) if event.step in shown)


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_contest_raises_no_alarm(faces_shards: str, tmp_path: Path, seed: int) -> None:
    found = diagnoses(faces_shards, tmp_path, (f"seed={seed}",), ranks=1 if seed else 2)
    assert [event["state"] for event in found] == []
