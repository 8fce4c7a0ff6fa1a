"""What an evaluation is held on: which photos, cut how, with which holes; the same for every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from glci_dist.config import HolesConfig
from glci_dist.data.decode import DecodeError, decode
from glci_dist.data.holes import check_holes, draw_holes
from glci_dist.data.index import Index
from glci_dist.data.masks import render_masks
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError

BOX_SEED = 20170730
"""Seed of the ``box`` protocol's holes. Frozen: another value makes every published figure incomparable."""


@dataclass(frozen=True)
class Protocol:
    """A frozen set of holes: the hole of photo number i is a pure function of (protocol, i)."""

    name: str
    seed: int
    size: int
    """Side of the square photos, px."""
    holes: HolesConfig

    def masks(self, numbers: range) -> Tensor:
        """The holes of these photos: float32 (len(numbers), 1, size, size), 1 in the hole."""
        holes = draw_holes(self.holes, self.size, seed=self.seed, step=0, slots=numbers)
        return render_masks(torch.from_numpy(holes.boxes), torch.from_numpy(holes.strokes), self.size)

    def digest(self, photos: int) -> str:
        """Sha256 over the boxes and strokes of the first ``photos`` holes; equal digests mean equal holes."""
        holes = draw_holes(self.holes, self.size, seed=self.seed, step=0, slots=range(photos))
        digest = hashlib.sha256()
        digest.update(np.ascontiguousarray(holes.boxes, dtype="<i4").tobytes())
        digest.update(np.ascontiguousarray(holes.strokes, dtype="<f4").tobytes())
        return digest.hexdigest()


def box_protocol(size: int, holes: HolesConfig) -> Protocol:
    """The default protocol ``box``: one rectangle anywhere, sides from ``holes``' range whatever its kind.

    Raises UserError where such holes do not fit a photo of ``size`` px.
    """
    box = replace(holes, kind="box")
    check_holes(box, size)
    return Protocol(name="box", seed=BOX_SEED, size=size, holes=box)


def evaluation_photos(
    index: Index, store: ShardStore, *, size: int, short_edge: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Every sample of ``index`` in its order: ("<shard>/<key>", uint8 (size, size, 3) RGB).

    The short edge is scaled to ``short_edge`` px, then the centre is cut out; nothing is random.
    Raises UserError for a crop larger than the short edge, and for a photo that cannot be decoded:
    leaving it out would move every later photo to another hole.
    """
    if short_edge < size:
        raise UserError(
            f"short edge {short_edge} is smaller than the crop of {size} px; set data.short_edge to at least {size}"
        )
    for number, shard in enumerate(index.shards):
        for sample in range(shard.samples):
            key, encoded = store.sample(number, sample)
            name = f"{shard.name}/{key}"
            try:
                photo = decode(encoded, short_edge=short_edge)
            except DecodeError as error:
                raise UserError(
                    f"{name} cannot be decoded ({error}); an evaluation needs every photo: build its shards again"
                ) from error
            yield name, centre_crop(photo, size)


def centre_crop(photo: np.ndarray, size: int) -> np.ndarray:
    """The middle (size, size, 3) of a photo (H, W, 3) that is at least as large; a copy."""
    height, width = photo.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(photo[top : top + size, left : left + size])
