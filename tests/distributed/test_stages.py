"""A phase with photos and batches of its own: the same losses in every world, and bitwise where it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.recordings import record, tiny
from tests.distributed.test_elastic import train_some
from tests.small_run import final_files
from tests.worlds import run_world

pytestmark = pytest.mark.distributed
COARSE = (
    "phases.coarse={steps: 4, size: 32, batch: 16, completion_lr: 5e-5}",
    "phases.completion.batch=12",
    "data.order.lanes=2",
    "model.completion={fill: pyramid, residual: true, skips: true, blocks: residual, enlarge: resize_after}",
    "losses={reconstruction: l1, region: rim}",
)
STEPS = (4, 2, 3)
BATCHES = [16] * 4 + [12] * 4 + [8] * 5


def test_every_world_gives_the_same_losses_on_the_same_samples(faces_shards: str, tmp_path: Path) -> None:
    def overrides(folder: str) -> list[str]:
        return tiny(faces_shards, str(tmp_path / folder), steps=STEPS, extra=COARSE)

    (known,) = run_world(1, record, overrides("alone"))
    assert [len(keys) for keys in known.keys] == BATCHES
    # No photo is repeated while the corpus of 96 lasts, though the batch changes: in four steps of 16, two of 12.
    seen = [key for keys in known.keys for key in keys][: 4 * 16 + 2 * 12]
    assert len(set(seen)) == len(seen)
    for world_size in (2, 4):
        ranks = run_world(world_size, record, overrides(f"{world_size}"))
        for step, expected in enumerate(known.losses):
            assert sum((rank.keys[step] for rank in ranks), ()) == known.keys[step]
            for name, value in expected.items():
                assert ranks[0].losses[step][name] == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)


@pytest.mark.parametrize("stop_in", [2, 5])
def test_a_run_stopped_in_a_phase_of_other_photos_ends_bitwise_the_same(
    faces_shards: str, tmp_path: Path, stop_in: int
) -> None:
    def overrides(folder: str) -> list[str]:
        extra = ("name=run", "data.workers=1", *COARSE)
        return tiny(faces_shards, str(tmp_path / folder), steps=STEPS, extra=extra)

    run_world(2, train_some, overrides("whole"), None)
    run_world(2, train_some, overrides("stopped"), stop_in)
    first, _, ending = run_world(2, train_some, overrides("stopped"), None)[0]
    assert first == stop_in + 1
    assert not ending
    expected = final_files(tmp_path / "whole" / "run", len(BATCHES))
    assert final_files(tmp_path / "stopped" / "run", len(BATCHES)) == expected
