"""What a phase does not train stays as it was, bit by bit; and the contest is a contest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from glci_dist import compose
from glci_dist.cluster.world import joined
from glci_dist.training.setup import prepare
from tests.distributed.recordings import tiny, weights
from tests.worlds import run_world

pytestmark = pytest.mark.distributed


def observe(overrides: list[str]) -> list[dict[str, bool]]:
    """For each step: which networks changed (weights or running statistics), which hold gradients."""
    config = compose.load(overrides)
    seen = []
    with joined(config.engine) as world:
        trainer = prepare(config, world)
        completion, discriminators = trainer.step.gan.completion, trainer.step.gan.discriminators
        for step, batch in enumerate(trainer.batches.from_step(0)):
            before = weights(completion), weights(discriminators)
            trainer.step.gan.update(trainer.step.to_device(batch), trainer.schedule.at(step))
            after = weights(completion), weights(discriminators)
            seen.append(
                {
                    "completion changed": not _equal(before[0], after[0]),
                    "discriminators changed": not _equal(before[1], after[1]),
                    "gradient left": any(
                        p.grad is not None for e in (completion, discriminators) for p in e.network.parameters()
                    ),
                    "frozen": any(
                        not p.requires_grad for e in (completion, discriminators) for p in e.network.parameters()
                    ),
                }
            )
        trainer.close()
    return seen


def completion_gradient(overrides: list[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The completion network's gradient at the first step, and who else got one from its update."""
    config = compose.load(overrides)
    with joined(config.engine) as world:
        trainer = prepare(config, world)
        found: dict[str, Tensor] = {}
        leaked: list[str] = []
        engine = trainer.step.gan.completion
        real_step = engine.step

        def step(lr: float, limit: float) -> object:
            found.update({n: p.grad.clone() for n, p in engine.network.named_parameters() if p.grad is not None})
            discriminators = trainer.step.gan.discriminators.network
            leaked.extend(n for n, p in discriminators.named_parameters() if p.grad is not None)
            return real_step(lr, limit)

        engine.step = step  # type: ignore[method-assign, assignment]
        trainer.step.gan.update(trainer.step.to_device(next(trainer.batches.from_step(0))), trainer.schedule.at(0))
        trainer.close()
    return found, leaked


def _equal(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_phase_leaves_the_other_network_bitwise_untouched(faces_shards: str, tmp_path: Path, stage: int) -> None:
    overrides = tiny(faces_shards, str(tmp_path), steps=(2, 2, 2), extra=(f"engine.zero_stage={stage}",))

    for rank in run_world(2, observe, overrides):
        assert [step["completion changed"] for step in rank] == [True, True, False, False, True, True]
        assert [step["discriminators changed"] for step in rank] == [False, False, True, True, True, True]
        assert not any(step["gradient left"] or step["frozen"] for step in rank)


def test_cadences_update_each_side_only_when_it_is_due(faces_shards: str, tmp_path: Path) -> None:
    extra = ("phases.joint.completion_every=2", "phases.joint.discriminator_every=3")
    seen = run_world(1, observe, tiny(faces_shards, str(tmp_path), steps=(0, 0, 6), extra=extra))[0]

    assert [step["completion changed"] for step in seen] == [False, True, False, True, False, True]
    assert [step["discriminators changed"] for step in seen] == [False, False, True, False, False, True]


def test_alpha_scales_the_adversarial_part_of_the_completion_gradient(faces_shards: str, tmp_path: Path) -> None:
    def gradient(alpha: float) -> Tensor:
        extra = (
            f"phases.joint.alpha={alpha}",
            "phases.joint.discriminator_lr=0",
        )
        overrides = tiny(faces_shards, str(tmp_path / str(alpha)), steps=(0, 0, 1), extra=extra)
        found, leaked = run_world(1, completion_gradient, overrides)[0]
        assert leaked == []
        return torch.cat([found[name].flatten().double() for name in sorted(found)])

    without, once, twice = gradient(0.0), gradient(1.0), gradient(2.0)

    assert (once - without).norm() > 1e-3 * without.norm()
    assert (twice - without - 2 * (once - without)).norm() < 1e-3 * (once - without).norm()
