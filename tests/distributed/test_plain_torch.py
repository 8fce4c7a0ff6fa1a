"""The trainer does to the networks, over two DeepSpeed engines, what a hand-written loop in plain torch does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from glci_dist.checkpoints.reading import CheckpointVectors, load_tensors
from tests.distributed.plain_torch import PlainRecording, record_plain
from tests.distributed.recordings import Recording, record, tiny
from tests.small_run import newest_in
from tests.worlds import run_world

pytestmark = pytest.mark.distributed
STEPS = (3, 3, 3)
RELATIVE = 1e-4
COLOUR = [0.5, 0.4, 0.35]
MOVED = 3e-3
WATCHED = (
    "engine.ema=0.4",
    "engine.gradient_clip=0.2",
    "engine.spike_factor=1.09",
    "engine.spike_window=2",
    "doctor.window=2",
    "doctor.every=1",
    "checkpoints.every=4",
    "phases.completion.lr_warmup=0",
    "phases.completion.completion_lr=1e-5",
    "phases.discriminator.discriminator_lr=1e-4",
    "phases.joint.completion_lr=1e-3",
    "phases.joint.discriminator_lr=1e-4",
    "phases.joint.lr_schedule=constant",
)
"""All that a run has beside its updates: a moving average, gradients cut short or refused, diagnoses, checkpoints.

And learning rates of a usual run, but in phase 1: there the norms of gradients stay, so that the next phase's first is
the one that is refused.
"""


@pytest.fixture(scope="module")
def plain(faces_shards: str) -> PlainRecording:
    torch.set_num_threads(1)
    return record_plain(_overrides(faces_shards, "unused"), COLOUR)


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 0), (4, 0), (1, 1), (2, 1), (4, 1)])
def test_gradients_and_weights_equal_a_hand_written_loop(
    plain: PlainRecording, faces_shards: str, tmp_path: Path, world_size: int, stage: int
) -> None:
    # Two ways to sum differ in the last bit, which flips a ReLU here and there; a flipped ReLU moves
    # a gradient by 3e-4, which would hide what is tested. Hence networks without kinks, on both sides.
    overrides = _overrides(faces_shards, str(tmp_path), f"engine.zero_stage={stage}")
    ranks = run_world(world_size, record, overrides, True)

    # ZeRO stage 1 keeps no whole gradient to look at; its weights and moments say the same.
    _compare(plain, ranks[0], tmp_path, gradients=stage == 0)


@pytest.mark.parametrize("stage", [0, 1])
def test_accumulated_gradients_are_the_mean_over_micro_batches(faces_shards: str, tmp_path: Path, stage: int) -> None:
    overrides = _overrides(faces_shards, str(tmp_path), "engine.accumulation=2", f"engine.zero_stage={stage}")
    # Rank 0 holds slots 0 to 3, rank 1 slots 4 to 7; each cuts its own in two.
    plain = record_plain(overrides, COLOUR, parts=[(0, 1, 4, 5), (2, 3, 6, 7)])
    ranks = run_world(2, record, overrides, True)

    _compare(plain, ranks[0], tmp_path, gradients=stage == 0)


def _compare(plain: PlainRecording, found: Recording, runs: Path, *, gradients: bool) -> None:
    assert found.updates == plain.updates
    assert [number for number, (_, applied) in enumerate(plain.updates) if not applied] == [7]
    worst = furthest = 0.0
    if gradients:
        assert len(plain.gradients) == len(found.gradients) == 12
        for update, (expected, other) in enumerate(zip(plain.gradients, found.gradients, strict=True)):
            assert expected.keys() == other.keys()
            for name in expected:
                worst = max(worst, _check(f"update {update}: gradient of {name}", expected[name], other[name]))
    for step, losses in enumerate(plain.losses):
        for name, loss in losses.items():
            worst = max(
                worst, _check(f"step {step}: {name}", torch.tensor(loss), torch.tensor(found.losses[step][name]))
            )
    for name, tensor in plain.weights.items():
        worst = max(worst, _check(name, tensor, found.weights[name]))
        if tensor.is_floating_point() and "mean_colour" not in name:
            way, their_way = (weights[name] - plain.start[name] for weights in (plain.weights, found.weights))
            assert way.any(), f"{name} never moved"
            furthest = max(furthest, _check(f"the way of {name}", way, their_way, MOVED))
    saved = newest_in(runs / "faces64" / "checkpoints")
    assert saved is not None
    assert saved.step == sum(STEPS)
    tensors, vectors = load_tensors(saved), CheckpointVectors(saved)
    assert tensors.keys() == plain.weights.keys()
    assert all(tensor.equal(found.weights[name]) for name, tensor in tensors.items())
    assert set(vectors.names()) == plain.vectors.keys()
    for name, vector in plain.vectors.items():
        worst = max(worst, _check(name, vector, vectors.read(name, 0, len(vector))))
    for name, norms in saved.manifest.facts["health"]["norms"].items():
        worst = max(worst, _check(f"norms of {name}", torch.tensor(plain.norms[name]), torch.tensor(norms)))
    print(f"agrees to {worst:.1e}, what training changed to {furthest:.1e}")


def _overrides(shards: str, runs: str, *extra: str) -> list[str]:
    colour = f"data.mean_colour={COLOUR}".replace(" ", "")
    return tiny(shards, runs, steps=STEPS, extra=(colour, *WATCHED, *extra))


def _check(name: str, expected: Tensor, found: Tensor, limit: float = RELATIVE) -> float:
    """The difference relative to the tensor's norm, which must be small."""
    difference = float((expected - found).float().norm() / expected.float().norm().clamp(min=1e-12))
    assert difference <= limit, f"{name} is off by {difference:.1e}"
    return difference
