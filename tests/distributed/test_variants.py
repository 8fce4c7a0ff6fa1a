"""Each named setting trains: all three phases, on two real ranks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.distributed.recordings import record, tiny
from tests.worlds import run_world

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "extra",
    [
        ("recipe=paper",),
        ("model.completion.kind=context_encoder", "model.discriminator.kind=local"),
        ("model.discriminator.kind=global", "losses.reconstruction=l1", "losses.region=photo"),
        ("holes.kind=freeform", "engine.precision=bf16", "engine.gradient_clip=0.01"),
    ],
    ids=["paper", "context-encoder", "global-l1-photo", "freeform-bf16-clip"],
)
def test_every_variant_trains_through_all_phases(faces_shards: str, tmp_path: Path, extra: tuple[str, ...]) -> None:
    first, second = run_world(2, record, tiny(faces_shards, str(tmp_path), steps=(2, 2, 2), extra=extra))

    assert [sorted(losses) for losses in first.losses] == [sorted(losses) for losses in second.losses]
    assert all(math.isfinite(value) for losses in first.losses for value in losses.values())
    assert "adversarial" in first.losses[-1]
    for name, tensor in first.weights.items():
        assert tensor.isfinite().all()
        assert tensor.equal(second.weights[name]), f"{name} differs between ranks"


def test_accumulated_gradients_are_the_mean_over_micro_batches(faces_shards: str, tmp_path: Path) -> None:
    def updates(run: str, *extra: str) -> list[dict[str, float]]:
        overrides = tiny(faces_shards, str(tmp_path / run), steps=(0, 0, 1), extra=extra)
        gradients = run_world(2, record, overrides)[0].gradients
        return [{name: float(g.norm()) for name, g in update.items()} for update in gradients]

    whole = updates("whole")
    parts = updates("parts", "engine.accumulation=2")

    # Batch norm sees other batches, so the gradients are not the same; but a sum, or a single
    # micro-batch's gradient lost, would be off by a factor of two.
    for one, other in zip(whole, parts, strict=True):
        total_one, total_other = (math.hypot(*update.values()) for update in (one, other))
        assert total_other == pytest.approx(total_one, rel=0.4)


def test_accumulation_gives_the_same_weights_with_zero_stage_0_and_1(faces_shards: str, tmp_path: Path) -> None:
    def weights(stage: int) -> dict[str, Tensor]:
        extra = ("engine.accumulation=2", f"engine.zero_stage={stage}")
        overrides = tiny(faces_shards, str(tmp_path / str(stage)), steps=(1, 1, 1), extra=extra)
        return run_world(2, record, overrides)[0].weights

    whole, partitioned = weights(0), weights(1)
    for name, tensor in whole.items():
        torch.testing.assert_close(partitioned[name], tensor, rtol=1e-4, atol=1e-6)
