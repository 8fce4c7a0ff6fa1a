"""Each named setting trains: all three phases, on two real ranks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.distributed.recordings import record, tiny
from tests.worlds import run_world

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "extra",
    [
        ("recipe=paper",),
        ("model.completion.kind=context_encoder", "model.discriminator.kind=local"),
        ("model.discriminator.kind=global", "losses.reconstruction=l1", "losses.region=photo"),
        ("optimizers.completion.kind=muon", "optimizers.discriminator.kind=muon", "model.completion.mirror=true"),
        ("holes.kind=freeform", "engine.precision=bf16", "engine.gradient_clip=0.01"),
    ],
    ids=["paper", "context-encoder", "global-l1-photo", "muon-mirror", "freeform-bf16-clip"],
)
def test_every_variant_trains_through_all_phases(faces_shards: str, tmp_path: Path, extra: tuple[str, ...]) -> None:
    first, second = run_world(2, record, tiny(faces_shards, str(tmp_path), steps=(2, 2, 2), extra=extra))

    assert [sorted(losses) for losses in first.losses] == [sorted(losses) for losses in second.losses]
    assert all(math.isfinite(value) for losses in first.losses for value in losses.values())
    assert "loss/adversarial" in first.losses[-1]
    for name, tensor in first.weights.items():
        assert tensor.isfinite().all()
        assert tensor.equal(second.weights[name]), f"{name} differs between ranks"
