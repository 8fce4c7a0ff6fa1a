"""Phases with photo sizes and batches of their own: one order through all of them, and lengths in proportion."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glci_dist import compose
from glci_dist.config import Config, DataConfig, HolesConfig, OrderConfig
from glci_dist.data.index import load_index
from glci_dist.data.loader import make_loader
from glci_dist.data.order import Order
from glci_dist.data.stages import Stage, at_size, check_all_holes, order_at, orders, stages
from glci_dist.errors import UserError
from glci_dist.models.sizes import check_models
from tests.data.test_loader import same
from tests.data.test_order import COUNTS, TOTAL, make_order

ORDER = OrderConfig(lanes=8, block_shards=3)
CHANGING = [Stage(7, 32, 16), Stage(5, 64, 32), Stage(9, 64, 8), Stage(40, 64, 24)]


def chain(of: list[Stage]) -> list[Order]:
    return orders(COUNTS, of, seed=5, config=ORDER)


def config(*overrides: str) -> Config:
    return compose.load(["data.shards=x", "phases.coarse.steps=0", *overrides])


def test_stages_of_one_batch_continue_the_order_of_a_run_without_stages() -> None:
    whole = make_order(lanes=8)
    # Far into the third epoch, and with stages that end in the middle of one, at its end, and at once.
    lengths = [3, whole.steps_per_epoch - 3, 1, 2 * whole.steps_per_epoch]
    of = [Stage(steps, 64, 16) for steps in lengths]
    step = 0
    for stage, order in zip(of, chain(of), strict=True):
        for _ in range(stage.steps):
            assert order.samples(step, range(16)) == whole.samples(step, range(16))
            step += 1


def test_a_change_of_batch_repeats_no_sample_within_an_epoch() -> None:
    seen: dict[int, Counter[tuple[int, int]]] = {}
    step = 0
    for stage, order in zip(CHANGING, chain(CHANGING), strict=True):
        for _ in range(stage.steps):
            samples = order.samples(step, range(stage.batch))
            assert len(samples) == stage.batch
            seen.setdefault(order.position(step).epoch, Counter()).update(samples)
            step += 1
    assert sorted(seen) == list(range(len(seen)))
    assert all(set(counter.values()) == {1} for counter in seen.values())
    # Within the last stage nothing but the epoch's remainder is left out.
    assert all(len(seen[epoch]) > TOTAL - 24 - 8 for epoch in sorted(seen)[-4:-1])


def test_a_step_is_found_without_the_steps_before_it() -> None:
    of = config("global_batch=8", "phases.completion.batch=16", "phases.completion.steps=9", "phases.joint.steps=30")
    of.data.order.lanes = 8
    step = 9 + of.phases["discriminator"].steps + 4
    order, stage = order_at(COUNTS, of, step)
    known = orders(COUNTS, stages(of), seed=of.seed, config=of.data.order)
    assert stage.batch == 8
    assert order.samples(step, range(8)) == known[1].samples(step, range(8))
    with pytest.raises(UserError, match="lies outside a schedule"):
        order_at(COUNTS, of, 10**6)


def test_phases_that_are_alike_are_one_stage_and_phases_without_steps_none() -> None:
    found = stages(
        config(
            *("global_batch=32", "data.size=64", "phases.completion.steps=10", "phases.completion.size=32"),
            *("phases.completion.batch=16", "phases.discriminator.steps=0", "phases.joint.steps=20"),
            *("+phases={more: {steps: 5, completion_every: 1, size: 64, batch: 32}}",),
        )
    )
    assert found == [Stage(10, 32, 16), Stage(25, 64, 32)]


def test_every_length_is_in_proportion_to_the_photos_side() -> None:
    data = DataConfig(shards="x", size=64, short_edge=[64, 71])
    holes = HolesConfig(min_side=19, max_side=38, patch=40, stroke_radius=[1.5, 4.0])
    assert at_size(data, holes, 64) == (data, holes)
    small, small_holes = at_size(data, holes, 32)
    assert (small.size, small.short_edge) == (32, [32, 36])
    assert small_holes == replace(holes, min_side=10, max_side=19, patch=20, stroke_radius=[1.0, 2.0])
    large, large_holes = at_size(data, holes, 128)
    assert (large.short_edge, large_holes.min_side, large_holes.patch) == ([128, 142], 38, 80)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_their_stages_size_and_length_from_any_process_and_rank(small_shards: Path, workers: int) -> None:
    data = DataConfig(
        shards=str(small_shards),
        size=32,
        short_edge=[32, 36],
        order=OrderConfig(lanes=4),
        workers=workers,
        prefetch=2,
    )
    of = [Stage(2, 16, 8), Stage(2, 32, 4), Stage(3, 16, 12)]
    index = load_index(data.shards)

    def batches(steps: range, *, rank: int = 0, world_size: int = 1, workers: int = 0) -> list:
        made = make_loader(
            index,
            replace(data, workers=workers),
            HolesConfig(min_side=8, max_side=16, patch=16),
            seed=3,
            global_batch=8,
            rank=rank,
            world_size=world_size,
            steps=steps,
            stages=of,
        )
        return list(made)

    found = batches(range(7), workers=workers)
    assert [tuple(each.photos.shape) for each in found] == (
        [(8, 16, 16, 3)] * 2 + [(4, 32, 32, 3)] * 2 + [(12, 16, 16, 3)] * 3
    )
    assert [each.patch for each in found] == [8, 8, 16, 16, 8, 8, 8]
    assert all(int(each.boxes[..., 2:].max()) <= (16 if each.patch == 16 else 8) for each in found)
    # From the middle, as a resumed run asks for them, and from two ranks.
    assert all(map(same, batches(range(3, 7), workers=workers), found[3:]))
    halves = [batches(range(7), rank=rank, world_size=2) for rank in (0, 1)]
    for whole, first, second in zip(found, *halves, strict=True):
        assert torch.equal(whole.photos, torch.cat([first.photos, second.photos]))
        assert whole.keys == first.keys + second.keys
        assert [*whole.slots] == [*first.slots, *second.slots]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["phases.joint.size=32"], "phases.joint.size=32 differs from data.size=64, the only one that the"),
        (["phases.completion.size=30"], "phases.completion.size=30 is not a multiple of 4: the completion network"),
        (
            ["phases.completion.size=32", "holes={kind: freeform, max_side: 37, patch: 37, stroke_radius: [1, 18.4]}"],
            "phases.completion.size=32: holes and patches scaled to it: holes.stroke_radius=[1.0, 9.2]: a stroke of",
        ),
        (
            ["data.size=8", "data.short_edge=[8,8]", "model.completion.kind=context_encoder"],
            "data.size=8 cannot be halved",
        ),
        (["phases.completion.batch=30"], "data.order.lanes=4 does not divide phases.completion.batch=30: choose"),
        (
            ["phases.completion.size=32", "model.completion.kind=context_encoder"],
            "phases.completion.size=32, but model.completion.kind=context_encoder takes photos of data.size=64 alone",
        ),
    ],
)
def test_a_size_or_batch_that_cannot_be_is_refused_in_one_line(overrides: list[str], said: str) -> None:
    def check() -> None:
        made = config(*overrides)
        check_models(made)
        check_all_holes(made)

    with pytest.raises(UserError) as raised:
        check()
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


def test_a_phases_batch_must_be_shared_evenly_by_the_ranks() -> None:
    made = config("~tuning", "phases.completion.batch=36", "data.order.lanes=4")
    compose.check_world(made, 4, "cpu")
    with pytest.raises(UserError, match=r"^phases\.completion\.batch=36 is not a multiple of 8 \(8 ranks"):
        compose.check_world(made, 8, "cpu")
    assert [stage.batch for stage in stages(made)] == [36, 32]
