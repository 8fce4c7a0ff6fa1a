"""The world size and the ZeRO stage decide who computes a slot, never what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.recordings import Recording, record, tiny
from tests.worlds import run_world

pytestmark = pytest.mark.distributed
STEPS = (10, 10, 10)
RELATIVE = 1e-4


@pytest.fixture(scope="module")
def alone(faces_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The run on one rank with ZeRO stage 0, which all others must equal."""
    return run_world(1, record, tiny(faces_shards, str(tmp_path_factory.mktemp("runs")), steps=STEPS))[0]


@pytest.mark.parametrize(("world_size", "stage"), [(2, 0), (4, 0), (1, 1), (2, 1), (4, 1)])
def test_every_world_and_stage_gives_the_same_losses_on_the_same_samples(
    alone: Recording, faces_shards: str, tmp_path: Path, world_size: int, stage: int
) -> None:
    overrides = tiny(faces_shards, str(tmp_path), steps=STEPS, extra=(f"engine.zero_stage={stage}",))
    ranks = run_world(world_size, record, overrides)

    for step, keys in enumerate(alone.keys):
        assert sum((rank.keys[step] for rank in ranks), ()) == keys
    worst = 0.0
    for step, expected in enumerate(alone.losses):
        for rank in ranks:
            assert rank.losses[step].keys() == expected.keys()
        for name, value in expected.items():
            difference = abs(ranks[0].losses[step][name] - value) / max(abs(value), 1e-6)
            worst = max(worst, difference)
            assert difference <= RELATIVE, f"step {step}: {name} is off by {difference:.1e}"
    print(f"world {world_size}, ZeRO {stage}: losses agree to {worst:.1e}")


def test_all_ranks_hold_the_same_running_statistics_and_weights(faces_shards: str, tmp_path: Path) -> None:
    ranks = run_world(4, record, tiny(faces_shards, str(tmp_path), steps=(2, 2, 2)))

    for rank in ranks[1:]:
        for name, tensor in ranks[0].weights.items():
            assert tensor.equal(rank.weights[name]), f"{name} differs between ranks"
