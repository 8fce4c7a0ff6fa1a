"""Which sample is in which slot of which step: a pure function, for corpora of any size.

An epoch is one sequence of all N samples: the shards are permuted, and the samples inside blocks of a few
consecutive shards of that permutation. The sequence is cut into ``lanes`` of equal length that are read in parallel.
Memory holds the shards' counts and the few blocks that are being read, never a list of N samples.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from glci_dist.config import OrderConfig
from glci_dist.data.draws import generator
from glci_dist.errors import UserError

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Epoch:
    """One epoch's permutation of the shards, and where each shard and block of it starts."""

    number: int
    shards: NDArray[np.int64]
    shard_starts: NDArray[np.int64]
    """Position in the epoch of each permuted shard's first sample, and N at the end."""
    block_starts: NDArray[np.int64]


@dataclass(frozen=True)
class OrderPosition:
    """What a step begins with."""

    step: int = 0
    epoch: int = 0
    in_lane: int = 0
    """Samples of each lane of the epoch that were read before."""


class Order:
    """The order of a corpus whose shards hold ``counts`` samples, for every step from ``start`` on.

    Samples that do not fill a step at the epoch's end are dropped; they differ from epoch to epoch.
    Raises ``UserError`` if ``config.lanes`` does not divide ``global_batch``, or the corpus is too small.
    """

    def __init__(
        self,
        counts: NDArray[np.int64],
        *,
        seed: int,
        global_batch: int,
        config: OrderConfig,
        start: OrderPosition | None = None,
    ) -> None:
        if global_batch % config.lanes:
            raise UserError(
                f"data.order.lanes={config.lanes} does not divide a batch of {global_batch} photos: choose a divisor"
            )
        total = int(counts.sum())
        if total < global_batch:
            raise UserError(
                f"the corpus has {total} samples, fewer than a batch of {global_batch}: add photos, or make "
                "global_batch (or phases.*.batch) smaller"
            )
        self._counts = np.asarray(counts, dtype=np.int64)
        self._seed = seed
        self._block_shards = config.block_shards
        self.lanes = config.lanes
        self._slots_per_lane = global_batch // config.lanes
        self._lane_length = total // config.lanes
        self.steps_per_epoch = self._lane_length // self._slots_per_lane
        self._start = start or OrderPosition()
        # Steps that the epoch of the start still fills.
        self._steps_left = (self._lane_length - self._start.in_lane) // self._slots_per_lane
        self._epochs: _Recent[_Epoch] = _Recent(2)
        # A step may span the end of one block and the start of the next in each lane.
        self._blocks: _Recent[NDArray[np.int64]] = _Recent(2 * config.lanes + 2)

    def position(self, step: int) -> OrderPosition:
        """What ``step``, which is not before the start, begins with: an order of other batches may go on from there."""
        after = step - self._start.step
        if after < self._steps_left:
            return OrderPosition(step, self._start.epoch, self._start.in_lane + after * self._slots_per_lane)
        epochs, within = divmod(after - self._steps_left, self.steps_per_epoch)
        return OrderPosition(step, self._start.epoch + 1 + epochs, within * self._slots_per_lane)

    def samples(self, step: int, slots: range) -> list[tuple[int, int]]:
        """(shard, number in that shard) for each of the ``slots`` of the global batch at ``step``."""
        at = self.position(step)
        epoch = self._epochs.get(at.epoch, partial(self._permute_shards, at.epoch))
        lane, place = np.divmod(np.asarray(slots, dtype=np.int64), self._slots_per_lane)
        positions = lane * self._lane_length + at.in_lane + place
        blocks = np.searchsorted(epoch.block_starts, positions, side="right") - 1
        for block in set(blocks.tolist()):
            inside, start = blocks == block, epoch.block_starts[block]
            order = self._blocks.get((at.epoch, block), partial(self._permute_block, epoch, block))
            positions[inside] = start + order[positions[inside] - start]
        places = np.searchsorted(epoch.shard_starts, positions, side="right") - 1
        numbers = positions - epoch.shard_starts[places]
        return list(zip(epoch.shards[places].tolist(), numbers.tolist(), strict=True))

    def _permute_shards(self, epoch: int) -> _Epoch:
        shards = generator(seed=self._seed, purpose="order of shards", number=epoch).permutation(len(self._counts))
        starts = np.concatenate([[0], np.cumsum(self._counts[shards])])
        return _Epoch(epoch, shards, starts, starts[: -1 : self._block_shards])

    def _permute_block(self, epoch: _Epoch, block: int) -> NDArray[np.int64]:
        end = min((block + 1) * self._block_shards, len(epoch.shards))
        samples = int(epoch.shard_starts[end] - epoch.block_starts[block])
        number = epoch.number * len(epoch.block_starts) + block
        return generator(seed=self._seed, purpose="order inside a block", number=number).permutation(samples)


class _Recent(Generic[Value]):
    """A least-recently-used cache."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        if key not in self._values:
            self._values[key] = compute()
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)
        return self._values[key]
