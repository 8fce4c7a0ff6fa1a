"""With batch norm over groups of slots neither the number of ranks nor that of micro-batches changes the training."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from tests.distributed.recordings import Recording, record, tiny
from tests.worlds import run_world

pytestmark = pytest.mark.distributed
STEPS = (6, 4, 6)
RELATIVE = 1e-4


def trained(ranks: int, shards: str, runs: Path, *extra: str) -> Recording:
    """What rank 0 saw of a run with 16 slots in groups of 8."""
    groups = ("global_batch=16", "model.batch_norm.group=8", *extra)
    return run_world(ranks, record, tiny(shards, str(runs), steps=STEPS, extra=groups))[0]


@pytest.fixture(scope="module", params=["apart", "together"])
def judging(request: pytest.FixtureRequest) -> str:
    return f"model.discriminator.batch_norm={request.param}"


@pytest.fixture(scope="module")
def alone(judging: str, faces_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return trained(1, faces_shards, tmp_path_factory.mktemp("runs"), judging)


def furthest(one: dict[str, Tensor], other: dict[str, Tensor], ending: str) -> float:
    """Largest difference of the tensors whose names end so, as a share of each one's largest value."""
    names = [name for name in one if name.endswith(ending)]
    assert names
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max()) for name in names)


# 4 ranks hold half a group each.
@pytest.mark.parametrize(("ranks", "accumulation"), [(2, 1), (4, 1), (1, 2)])
def test_every_world_and_every_number_of_micro_batches_gives_the_same_losses_and_running_statistics(
    alone: Recording, judging: str, faces_shards: str, tmp_path: Path, ranks: int, accumulation: int
) -> None:
    found = trained(ranks, faces_shards, tmp_path, judging, f"engine.accumulation={accumulation}")

    for step, (expected, losses) in enumerate(zip(alone.losses, found.losses, strict=True)):
        assert losses == pytest.approx(expected, rel=RELATIVE), f"step {step}"
    for ending in ("running_mean", "running_var"):
        assert furthest(alone.weights, found.weights, ending) < RELATIVE, ending


def test_groups_train_another_network_than_the_whole_batch(
    alone: Recording, judging: str, faces_shards: str, tmp_path: Path
) -> None:
    whole = trained(1, faces_shards, tmp_path, judging, "model.batch_norm.group=0")

    assert whole.losses[-1] != pytest.approx(alone.losses[-1], rel=RELATIVE)
