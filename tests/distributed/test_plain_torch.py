"""Two DeepSpeed engines do to the networks what two optimisers in plain torch do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.distributed.plain_torch import record_plain
from tests.distributed.recordings import Recording, record, tiny
from tests.worlds import run_world

pytestmark = pytest.mark.distributed
STEPS = (3, 3, 3)
RELATIVE = 1e-4
COLOUR = [0.5, 0.4, 0.35]


@pytest.fixture(scope="module")
def plain(faces_shards: str) -> Recording:
    torch.set_num_threads(1)
    return record_plain(_overrides(faces_shards, "unused"), COLOUR)


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 0), (4, 0), (1, 1), (2, 1), (4, 1)])
def test_gradients_and_weights_equal_a_hand_written_loop(
    plain: Recording, faces_shards: str, tmp_path: Path, world_size: int, stage: int
) -> None:
    # Two ways to sum differ in the last bit, which flips a ReLU here and there; a flipped ReLU moves
    # a gradient by 3e-4, which would hide what is tested. Hence networks without kinks, on both sides.
    overrides = _overrides(faces_shards, str(tmp_path), f"engine.zero_stage={stage}")
    ranks = run_world(world_size, record, overrides, True)

    # ZeRO stage 1 keeps no whole gradient to look at; its weights say the same.
    _compare(plain, ranks[0], gradients=stage == 0)


@pytest.mark.parametrize("stage", [0, 1])
def test_accumulated_gradients_are_the_mean_over_micro_batches(faces_shards: str, tmp_path: Path, stage: int) -> None:
    overrides = _overrides(faces_shards, str(tmp_path), "engine.accumulation=2", f"engine.zero_stage={stage}")
    # Rank 0 holds slots 0 to 3, rank 1 slots 4 to 7; each cuts its own in two.
    plain = record_plain(overrides, COLOUR, parts=[(0, 1, 4, 5), (2, 3, 6, 7)])
    ranks = run_world(2, record, overrides, True)

    _compare(plain, ranks[0], gradients=stage == 0)


def _compare(plain: Recording, found: Recording, *, gradients: bool) -> None:
    worst = 0.0
    if gradients:
        assert len(plain.gradients) == len(found.gradients) == 12
        for update, (expected, other) in enumerate(zip(plain.gradients, found.gradients, strict=True)):
            assert expected.keys() == other.keys()
            for name in expected:
                worst = max(worst, _check(f"update {update}: gradient of {name}", expected[name], other[name]))
    for name, tensor in plain.weights.items():
        worst = max(worst, _check(name, tensor, found.weights[name]))
    print(f"agrees to {worst:.1e}")


def _overrides(shards: str, runs: str, *extra: str) -> list[str]:
    colour = f"data.mean_colour={COLOUR}".replace(" ", "")
    return tiny(shards, runs, steps=STEPS, extra=(colour, *extra))


def _check(name: str, expected: Tensor, found: Tensor) -> float:
    """The difference relative to the tensor's norm, which must be small."""
    difference = float((expected - found).float().norm() / expected.float().norm().clamp(min=1e-12))
    assert difference <= RELATIVE, f"{name} is off by {difference:.1e}"
    return difference
