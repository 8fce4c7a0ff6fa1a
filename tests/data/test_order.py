"""The order of a corpus: every sample once an epoch, from the step and the slot alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from glci_dist.config import OrderConfig
from glci_dist.data.index import Shard, save_index
from glci_dist.data.order import Order
from glci_dist.errors import UserError
from tests.data.shards_help import PEAK

COUNTS = np.array([7, 31, 12, 1, 20, 25, 18, 9, 40, 3, 22])
TOTAL = int(COUNTS.sum())

Sample = tuple[int, int]


def make_order(*, lanes: int = 8, seed: int = 5, global_batch: int = 16, block_shards: int = 3) -> Order:
    config = OrderConfig(lanes=lanes, block_shards=block_shards)
    return Order(COUNTS, seed=seed, global_batch=global_batch, config=config)


def epoch_of(order: Order, epoch: int, *, worlds: int = 1, global_batch: int = 16) -> list[list[Sample]]:
    """The samples of each step of an epoch, asked for by each of ``worlds`` ranks apart."""
    share = global_batch // worlds
    ranks = [range(rank * share, (rank + 1) * share) for rank in range(worlds)]
    start = epoch * order.steps_per_epoch
    steps = range(start, start + order.steps_per_epoch)
    return [[sample for slots in ranks for sample in order.samples(step, slots)] for step in steps]


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("worlds", [1, 2, 4])
@pytest.mark.parametrize("block_shards", [1, 3, 100])
def test_an_epoch_has_every_sample_once_less_a_remainder_that_changes(
    lanes: int, worlds: int, block_shards: int
) -> None:
    order = make_order(lanes=lanes, block_shards=block_shards)
    corpus = {(shard, number) for shard, count in enumerate(COUNTS) for number in range(count)}
    dropped = []
    for epoch in range(4):
        seen = Counter(sample for step in epoch_of(order, epoch, worlds=worlds) for sample in step)
        assert set(seen.values()) == {1}
        assert set(seen) <= corpus
        dropped.append(frozenset(corpus - set(seen)))
    # Less than one step, and at most one sample more for each lane.
    assert {len(some) for some in dropped} == {TOTAL - order.steps_per_epoch * 16}
    assert 0 < len(dropped[0]) < 16 + lanes
    assert len(set(dropped)) == 4


@pytest.mark.parametrize("lanes", [1, 8])
def test_the_number_of_ranks_changes_no_slot(lanes: int) -> None:
    alone = epoch_of(make_order(lanes=lanes), 1)
    assert epoch_of(make_order(lanes=lanes), 1, worlds=2) == alone
    assert epoch_of(make_order(lanes=lanes), 1, worlds=4) == alone


@pytest.mark.parametrize("lanes", [1, 8])
def test_step_1000_asked_for_at_once_is_the_step_1000_that_was_run_to(lanes: int) -> None:
    running = make_order(lanes=lanes)
    steps = [running.samples(step, range(16)) for step in range(1001)]
    assert make_order(lanes=lanes).samples(1000, range(16)) == steps[1000]
    assert 1000 // running.steps_per_epoch > 10
    # And back again: nothing is remembered.
    assert [running.samples(step, range(16)) for step in (999, 3, 500)] == [steps[999], steps[3], steps[500]]


def test_each_seed_and_each_epoch_has_an_order_of_its_own() -> None:
    orders = [epoch_of(make_order(seed=seed), epoch) for seed in (5, 6) for epoch in (0, 1)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_each_epoch_permutes_the_shards_and_the_inside_of_a_block_anew() -> None:
    one_sample_each, one_shard = np.ones(64, np.int64), np.array([64])
    for counts in (one_sample_each, one_shard):
        order = Order(counts, seed=1, global_batch=64, config=OrderConfig(lanes=1, block_shards=1))
        assert len({tuple(order.samples(epoch, range(64))) for epoch in range(10)}) == 10


def test_samples_are_shuffled_across_the_shards_of_a_block() -> None:
    one_lane = [sample for step in epoch_of(make_order(lanes=1), 0) for sample in step]
    changes = sum(now[0] != before[0] for before, now in itertools.pairwise(one_lane))
    assert changes > 4 * len(COUNTS)
    in_file_order = sum(now == (before[0], before[1] + 1) for before, now in itertools.pairwise(one_lane))
    assert in_file_order < len(one_lane) / 5


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_shard_is_read_in_one_stretch_of_an_epoch(lanes: int) -> None:
    counts = np.full(200, 20)
    order = Order(counts, seed=1, global_batch=16, config=OrderConfig(lanes=lanes, block_shards=4))
    steps_of: dict[int, list[int]] = {}
    for step in range(order.steps_per_epoch):
        for shard, _ in order.samples(step, range(16)):
            steps_of.setdefault(shard, []).append(step)
    stretch = 4 * 20 / (16 / lanes)
    longest = sorted((max(steps) - min(steps) + 1 for steps in steps_of.values()), reverse=True)
    # A block that two lanes share is read at two times.
    shared = 4 * (lanes - 1)
    assert longest[shared] <= stretch + 1


def test_lanes_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.order.lanes=5 does not divide a batch of 16 photos"):
        make_order(lanes=5)


def test_a_corpus_smaller_than_the_batch_is_refused() -> None:
    with pytest.raises(UserError, match=rf"{TOTAL} samples, fewer than a batch of 256"):
        make_order(global_batch=256)


def test_a_corpus_of_just_one_batch_has_one_step_an_epoch() -> None:
    order = Order(np.array([16]), seed=0, global_batch=16, config=OrderConfig(lanes=8))
    assert order.steps_per_epoch == 1
    assert sorted(order.samples(77, range(16))) == [(0, number) for number in range(16)]


AT_SCALE = f"""
{PEAK}
import sys
from glci_dist.config import OrderConfig
from glci_dist.data.index import load_index
from glci_dist.data.order import Order
index = load_index(sys.argv[1])
order = Order(index.counts, seed=0, global_batch=4096, config=OrderConfig(lanes=64))
samples = order.samples(0, range(4096))
assert index.total == 10**9 and len(set(samples)) == 4096
print(peak_mib())
"""


def test_a_billion_samples_give_their_first_batch_within_500_mb(tmp_path: Path) -> None:
    save_index(tmp_path, (Shard(f"shard-{n:06d}.tar", 10_000, 10**9, "0" * 64, "0" * 64) for n in range(100_000)))
    command = [sys.executable, "-c", AT_SCALE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 500
