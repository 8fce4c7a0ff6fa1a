"""The world size and the ZeRO stage decide who computes a slot, never what comes out of the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.recordings import Recording, record, tiny
from tests.journal import read_journal
from tests.small_run import newest_in
from tests.worlds import run_world

pytestmark = pytest.mark.distributed
STEPS = (10, 10, 10)
RELATIVE = 1e-4
SHOWN = 1e-2
"""Of what stands behind a backward pass: a ReLU that rounding flips moves a gradient by 3e-4."""
WATCHED = (
    "engine.ema=0.5",
    "engine.gradient_clip=0.45",
    "engine.spike_factor=1.215",
    "engine.spike_window=5",
    "doctor.window=4",
    "doctor.every=2",
    "checkpoints.every=7",
)
"""All that a run has beside its updates: a moving average, gradients cut short or refused, diagnoses, checkpoints."""


@dataclass(frozen=True)
class Run:
    """What a world did, and what it left in the run's folder."""

    ranks: list[Recording]
    diagnoses: list[tuple[int, str]]
    """Step and state."""
    facts: Mapping[str, Any]
    """What the last checkpoint holds beside tensors."""


def trained(world_size: int, shards: str, runs: Path, stage: int) -> Run:
    overrides = tiny(shards, str(runs), steps=STEPS, extra=(*WATCHED, f"engine.zero_stage={stage}"))
    ranks = run_world(world_size, record, overrides)
    saved = newest_in(runs / "faces64" / "checkpoints")
    assert saved is not None
    assert saved.step == sum(STEPS)
    found = [event for event in read_journal(runs / "faces64") if event["event"] == "diagnosis"]
    return Run(ranks, [(event["step"], event["state"]) for event in found], saved.manifest.facts)


@pytest.fixture(scope="module")
def alone(faces_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run on one rank with ZeRO stage 0, which all others must equal."""
    return trained(1, faces_shards, tmp_path_factory.mktemp("runs"), 0)


@pytest.mark.parametrize(("world_size", "stage"), [(2, 0), (4, 0), (1, 1), (2, 1), (4, 1)])
def test_every_world_and_stage_gives_the_same_losses_on_the_same_samples(
    alone: Run, faces_shards: str, tmp_path: Path, world_size: int, stage: int
) -> None:
    run = trained(world_size, faces_shards, tmp_path, stage)
    (known,) = alone.ranks

    for step, keys in enumerate(known.keys):
        assert sum((rank.keys[step] for rank in run.ranks), ()) == keys
    worst = 0.0
    for step, expected in enumerate(known.losses):
        for rank in run.ranks:
            assert rank.losses[step].keys() == expected.keys()
        for name, value in expected.items():
            difference = abs(run.ranks[0].losses[step][name] - value) / max(abs(value), 1e-6)
            worst = max(worst, difference)
            assert difference <= RELATIVE, f"step {step}: {name} is off by {difference:.1e}"
    print(f"world {world_size}, ZeRO {stage}: losses agree to {worst:.1e}")
    _check_the_rest(alone, run)


def _check_the_rest(alone: Run, run: Run) -> None:
    (known,), (first, *others) = alone.ranks, run.ranks
    for rank in others:
        assert (rank.losses, rank.shown, rank.updates) == (first.losses, first.shown, first.updates)
        for name, tensor in first.weights.items():
            assert tensor.equal(rank.weights[name]), f"{name} differs between ranks"
    refused = [number for number, (_, applied) in enumerate(known.updates) if not applied]
    assert refused == [5, 21]
    assert first.updates == known.updates
    for step, (expected, found) in enumerate(zip(known.shown, first.shown, strict=True)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            difference = abs(found[name] - value) / max(abs(value), 1e-2)
            assert difference <= SHOWN, f"step {step}: {name} is off by {difference:.1e}"
    for network in ("completion", "discriminator", "average"):
        difference = float((_vector(first, network) - _vector(known, network)).norm() / _vector(known, network).norm())
        assert difference <= RELATIVE, f"{network} is off by {difference:.1e}"
    assert run.diagnoses == alone.diagnoses != []
    assert run.facts["samples"] == alone.facts["samples"]


def _vector(recording: Recording, network: str) -> Tensor:
    """All of a network's weights and running statistics."""
    tensors = (tensor for name, tensor in recording.weights.items() if name.startswith(f"{network}/"))
    return torch.cat([tensor.flatten().double() for tensor in tensors if tensor.is_floating_point()])
