"""What a phase does not train stays as it was, bit by bit; and the contest is a contest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.distributed.recordings import record, tiny
from tests.worlds import run_world

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("stage", [0, 1])
def test_a_phase_leaves_the_other_network_bitwise_untouched(faces_shards: str, tmp_path: Path, stage: int) -> None:
    overrides = tiny(faces_shards, str(tmp_path), steps=(2, 2, 2), extra=(f"engine.zero_stage={stage}",))

    for rank in run_world(2, record, overrides):
        assert (
            rank.changed
            == [{"completion", "average"}] * 2
            + [{"discriminator"}] * 2
            + [{"completion", "average", "discriminator"}] * 2
        )
        assert rank.traces == []


def test_cadences_update_each_side_only_when_it_is_due(faces_shards: str, tmp_path: Path) -> None:
    extra = ("phases.joint.completion_every=2", "phases.joint.discriminator_every=3", "engine.ema=0")
    (seen,) = run_world(1, record, tiny(faces_shards, str(tmp_path), steps=(0, 0, 6), extra=extra))

    completion, discriminator = {"completion"}, {"discriminator"}
    assert seen.changed == [set(), completion, discriminator, completion, set(), completion | discriminator]


def test_alpha_scales_the_adversarial_part_of_the_completion_gradient(faces_shards: str, tmp_path: Path) -> None:
    def gradient(alpha: float) -> Tensor:
        extra = (f"phases.joint.alpha={alpha}", "phases.joint.discriminator_lr=0")
        overrides = tiny(faces_shards, str(tmp_path / str(alpha)), steps=(0, 0, 1), extra=extra)
        (found,) = run_world(1, record, overrides)
        assert found.traces == []
        assert [side for side, _ in found.updates] == ["discriminator", "completion"]
        return torch.cat([tensor.flatten().double() for _, tensor in sorted(found.gradients[-1].items())])

    without, once, twice = gradient(0.0), gradient(1.0), gradient(2.0)

    assert (once - without).norm() > 1e-3 * without.norm()
    assert (twice - without - 2 * (once - without)).norm() < 1e-3 * (once - without).norm()
