"""The stream of batches: each step's photos, crops, holes and patches, made by loader workers in step order.

The dataset is indexed by step and remembers nothing, so resuming is starting at another step. The training
process imports this module, and the server that the workers are forked from imports it once for all of them.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from glci_dist.config import DataConfig, HolesConfig
from glci_dist.data.batch import Batch, Replacement
from glci_dist.data.decode import DecodeError, Pixels, decode
from glci_dist.data.draws import draws, integers, uniform
from glci_dist.data.holes import HoleDrawer
from glci_dist.data.index import Index
from glci_dist.data.order import Order
from glci_dist.data.stages import Stage, at_size, orders
from glci_dist.data.store import ShardStore
from glci_dist.data.worker_stream import batch_fault, worker_batches
from glci_dist.errors import UserError

NEIGHBOURS = 16
"""Samples that are tried in place of one that cannot be decoded."""

_READ_TOGETHER = 16
_SCRATCH_BYTES = 4 * 2**20


def make_loader(
    index: Index,
    data: DataConfig,
    holes: HolesConfig,
    *,
    seed: int,
    global_batch: int,
    rank: int,
    world_size: int,
    steps: Sequence[int],
    stages: Sequence[Stage] = (),
) -> Loader:
    """The batches of ``rank`` for each of ``steps``, in that order, from ``data.workers`` processes.

    ``stages``: of the run; none: each step has ``global_batch`` photos of ``data.size``.

    Raises ``UserError`` when the ranks or lanes do not divide ``global_batch`` or the corpus is too small for it, and
    while iterating when a shard is missing, does not match its index, or holds no photo that can be decoded.
    """
    run_stages = stages or [Stage(0, data.size, global_batch)]
    shares = []
    for stage in run_stages:
        if stage.batch % world_size:
            raise UserError(f"a batch of {stage.batch} photos cannot be shared by {world_size} ranks: use a multiple")
        share = stage.batch // world_size
        shares.append(range(rank * share, (rank + 1) * share))
    datasets = [
        StepDataset(
            index, *at_size(data, holes, stage.size), seed=seed, global_batch=stage.batch, slots=slots, order=order
        )
        for stage, slots, order in zip(
            run_stages, shares, orders(index.counts, run_stages, seed=seed, config=data.order), strict=True
        )
    ]
    starts = [0, *itertools.accumulate(stage.steps for stage in run_stages)][:-1]
    return Loader(StagedDataset(datasets, starts), data, steps)


class _Crop(NamedTuple):
    """What is cut out of a slot's photo; ``left`` and ``top`` are in [0, 1)."""

    short_edge: int
    left: float
    top: float


class StepDataset(Dataset[Batch]):
    """``dataset[step]`` is the ``Batch`` of some slots of the global batch, for any step at any time. Picklable.

    ``lanes`` stands in for ``data.order.lanes`` where another number is wanted; ``order``: of the samples,
    if it does not begin at step 0.
    """

    def __init__(
        self,
        index: Index,
        data: DataConfig,
        holes: HolesConfig,
        *,
        seed: int,
        global_batch: int,
        slots: range,
        lanes: int | None = None,
        order: Order | None = None,
    ) -> None:
        chosen = data.order if lanes is None else replace(data.order, lanes=lanes)
        self.slots = slots
        self.photo_shape = (len(slots), data.size, data.size, 3)
        self._order = order or Order(index.counts, seed=seed, global_batch=global_batch, config=chosen)
        lanes_read = chosen.lanes * len(slots) // global_batch + 1
        # Two blocks of each lane, as one may end within a step; few enough for any limit on open files.
        open_shards = min(max(32, 2 * lanes_read * chosen.block_shards), 512)
        self._store = ShardStore(index, data.cache, open_shards=open_shards)
        self._index, self._data, self._seed = index, data, seed
        self._holes, self._patch = HoleDrawer(holes, data.size), holes.patch
        self._scratch: Pixels | None = None

    def __getitem__(self, step: int) -> Batch:
        batch = self.make(step, torch.empty(self.photo_shape, dtype=torch.uint8))
        self.mirror(step, batch.photos)
        return batch

    def close(self) -> None:
        """Close the shards; the next batch opens what it needs again."""
        self._store.close()

    def mirror(self, step: int, photos: Tensor) -> None:
        """Mirror in place those of the photos that ``make`` wrote which the step's draws choose.

        Apart from ``make`` because the decoder writes around the processor's cache: whoever copies the photos
        next has them at hand, the loader worker would wait for each.
        """
        if not self._data.flip:
            return
        words = draws(seed=self._seed, purpose="mirrors", step=step, slots=self.slots, words=1)
        pixels = photos.numpy()
        for place in np.flatnonzero(uniform(words[:, 0]) < 0.5):
            cv2.flip(pixels[place], 1, dst=pixels[place])

    def make(self, step: int, photos: Tensor) -> Batch:
        """The batch of ``step``, its photos written, not yet mirrored, into ``photos`` (B, size, size, 3)."""
        pixels = photos.numpy()
        keys: list[str] = []
        replaced: list[Replacement] = []
        shards = self._index.shards
        samples, crops = self._order.samples(step, self.slots), self._crops(step)
        for start in range(0, len(samples), _READ_TOGETHER):
            # Several in a row: one read between two photos that are decoded takes eight times as long,
            # because the decoder has pushed all that it needs out of the processor's caches (measured).
            read = [self._store.sample(*sample) for sample in samples[start : start + _READ_TOGETHER]]
            for place, (key, encoded) in enumerate(read, start):
                put = partial(self._place, crop=crops[place], target=pixels[place])
                try:
                    self._store.decoded(*samples[place], put, encoded=encoded)
                except DecodeError as error:
                    failure = Replacement(shards[samples[place][0]].name, key, str(error), self.slots[place])
                    key, failures = self._replace(samples[place], failure, put)
                    replaced += failures
                keys.append(key)
        holes = self._holes.draw(seed=self._seed, step=step, slots=self.slots)
        return Batch(
            step=step,
            slots=self.slots,
            patch=self._patch,
            photos=photos,
            boxes=torch.from_numpy(holes.boxes),
            strokes=torch.from_numpy(holes.strokes),
            fake_patches=torch.from_numpy(holes.fake_patches),
            real_patches=torch.from_numpy(holes.real_patches),
            hole_pixels=None if holes.pixels is None else torch.from_numpy(holes.pixels),
            keys=tuple([f"{shards[shard].name}/{key}" for (shard, _), key in zip(samples, keys, strict=True)]),
            replaced=tuple(replaced),
        )

    def _crops(self, step: int) -> list[_Crop]:
        words = draws(seed=self._seed, purpose="crops", step=step, slots=self.slots, words=3)
        short_edges = integers(words[:, 0], *self._data.short_edge).tolist()
        shares = uniform(words[:, 1:]).tolist()
        return [_Crop(edge, left, top) for edge, (left, top) in zip(short_edges, shares, strict=True)]

    def _place(self, encoded: bytes, crop: _Crop, target: Pixels) -> None:
        """Decode and cut a photo into ``target``, uint8 (size, size, 3)."""
        if self._scratch is None:
            self._scratch = np.empty(_SCRATCH_BYTES, np.uint8)
        photo = decode(encoded, short_edge=crop.short_edge, target=target, scratch=self._scratch)
        if photo is target:
            return
        height, width = target.shape[:2]
        left = int(crop.left * (photo.shape[1] - width + 1))
        top = int(crop.top * (photo.shape[0] - height + 1))
        target[:] = photo[top : top + height, left : left + width]

    def _replace(
        self, sample: tuple[int, int], failure: Replacement, put: Callable[[bytes], None]
    ) -> tuple[str, list[Replacement]]:
        """``put`` the next sample that can be decoded in its place; its key, and those that cannot be."""
        shard, number = self._index.shards[sample[0]], sample[1]
        failures = [failure]
        while len(failures) < min(1 + NEIGHBOURS, shard.samples):
            key, encoded = self._store.sample(sample[0], (number + len(failures)) % shard.samples)
            try:
                put(encoded)
                return key, failures
            except DecodeError as another:
                failures.append(replace(failure, key=key, reason=str(another)))
        raise UserError(
            f"{shard.name}: none of the {len(failures)} samples from number {number} on can be decoded "
            f"({failures[-1].reason}): run `glci shards verify`, or build the shard again"
        )


class StagedDataset(Dataset[Batch]):
    """``dataset[step]`` is a ``Batch`` of the step's stage. Picklable."""

    def __init__(self, datasets: Sequence[StepDataset], starts: Sequence[int]) -> None:
        """``starts``: the first step of each of ``datasets``."""
        self._datasets, self._starts = datasets, starts
        self._last = datasets[0]
        self.photo_bytes = max(math.prod(each.photo_shape) for each in datasets)
        """Of the photos of a step of the largest stage."""

    def __getitem__(self, step: int) -> Batch:
        batch = self.make(step, torch.empty(self.photo_shape(step), dtype=torch.uint8))
        self.mirror(step, batch.photos)
        return batch

    def photo_shape(self, step: int) -> tuple[int, ...]:
        """Of the photos of ``step``."""
        return self._at(step).photo_shape

    def mirror(self, step: int, photos: Tensor) -> None:
        """As ``StepDataset.mirror``."""
        self._at(step).mirror(step, photos)

    def make(self, step: int, photos: Tensor) -> Batch:
        """As ``StepDataset.make``."""
        found = self._at(step)
        if found is not self._last:
            # Open files are limited.
            self._last.close()
            self._last = found
        return found.make(step, photos)

    def close(self) -> None:
        """Close the shards; the next batch opens what it needs again."""
        for each in self._datasets:
            each.close()

    def _at(self, step: int) -> StepDataset:
        return self._datasets[bisect_right(self._starts, step) - 1]


class Loader:
    """Iterates over the batches of its steps; each iteration starts its own workers and ends them."""

    def __init__(self, dataset: StagedDataset, data: DataConfig, steps: Sequence[int]) -> None:
        self._dataset, self._data, self._steps = dataset, data, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Batch]:
        if self._data.workers:
            yield from worker_batches(self._dataset, self._data, self._steps, preload=__name__)
            return
        try:
            for step in self._steps:
                try:
                    batch = self._dataset[step]
                except (OSError, MemoryError) as error:
                    raise batch_fault(error, step) from error
                yield batch
        finally:
            self._dataset.close()
