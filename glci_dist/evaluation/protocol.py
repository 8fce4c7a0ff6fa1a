"""The evaluation protocol: which photos, how they are cropped, and their holes; the same for every run."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import overload

import numpy as np
import torch
from torch import Tensor

from glci_dist.config import HolesConfig
from glci_dist.data.decode import DecodeError, decode
from glci_dist.data.holes import LEAST_RADIUS, Holes, check_holes, draw_holes
from glci_dist.data.index import Index
from glci_dist.data.masks import render_masks
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from glci_dist.evaluation.metrics import SSIM_WINDOW

SEED = 20170730
"""Frozen: with another value, results are not comparable with published ones."""
_RADII = {"freeform-thin": (1 / 64, 2 / 64), "freeform-medium": (2 / 64, 4 / 64), "freeform-thick": (4 / 64, 7 / 64)}
"""Range of a stroke's half width, as a share of the photo's side. Frozen too."""
MASK_SETS = ("box", "centre", *_RADII)
"""The frozen sets of holes."""


@dataclass(frozen=True)
class HoleProtocol(ABC):
    """A frozen set of holes: the hole of photo number i is a pure function of (protocol, photo size, i)."""

    name: str
    seed: int
    size: int
    """Side of the square photos, px."""

    @property
    @abstractmethod
    def patch(self) -> int:
        """Side of the square neighbourhood of a hole, px."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is called in a report."""

    @property
    def remark(self) -> str:
        """What a reader must know before comparing; empty: nothing."""
        return ""

    @abstractmethod
    def masks(self, numbers: range) -> Tensor:
        """The holes of these photos: float32 (len(numbers), 1, size, size), 1 in the hole."""

    @abstractmethod
    def patches(self, numbers: range) -> Tensor:
        """Left, top of each hole's neighbourhood: int32 (len(numbers), 2)."""

    @abstractmethod
    def digest(self, photos: int) -> str:
        """Sha256 over the first ``photos`` holes; equal digests of one protocol mean equal holes."""


@dataclass(frozen=True)
class MaskSet(HoleProtocol):
    """Holes of one of this package's own kinds."""

    holes: HolesConfig

    @property
    def patch(self) -> int:
        return self.holes.patch

    @property
    def title(self) -> str:
        sides = f", holes of {self.holes.min_side} to {self.holes.max_side} px" if self.name == "box" else ""
        return f"mask set {self.name}{sides}"

    def masks(self, numbers: range) -> Tensor:
        holes = self._draw(numbers)
        return render_masks(torch.from_numpy(holes.boxes), torch.from_numpy(holes.strokes), self.size)

    def patches(self, numbers: range) -> Tensor:
        return torch.from_numpy(self._draw(numbers).fake_patches)

    def digest(self, photos: int) -> str:
        holes = self._draw(range(photos))
        content = holes.boxes.astype("<i4").tobytes() + holes.strokes.astype("<f4").tobytes()
        return hashlib.sha256(content).hexdigest()

    def _draw(self, numbers: range) -> Holes:
        return draw_holes(self.holes, self.size, seed=self.seed, step=0, slots=numbers)


def frozen_protocol(name: str, size: int, holes: HolesConfig) -> MaskSet:
    """The mask set ``name`` on photos of ``size`` px.

    ``box``: one rectangle anywhere, with sides in the range of ``holes`` (of any kind); the hole's neighbourhood is
    the local discriminator's patch. The others do not depend on ``holes``: ``centre`` is a square of half the
    side in the middle, ``freeform-thin``, ``-medium`` and ``-thick`` are one to four strokes in a square of
    five eighths of the side.

    Raises UserError for another name, and where the holes do not fit the photo.
    """
    if name not in MASK_SETS:
        raise UserError(f"--masks={name} is no mask set: choose among {', '.join(MASK_SETS)}")
    chosen = replace(holes, kind="box", custom={})
    if name == "centre":
        chosen = HolesConfig(kind="centre", min_side=1, max_side=size // 2, patch=5 * size // 8)
    elif name in _RADII:
        side, radii = 5 * size // 8, [max(LEAST_RADIUS, size * share) for share in _RADII[name]]
        chosen = HolesConfig(kind="freeform", min_side=1, max_side=side, max_count=4, stroke_radius=radii, patch=side)
    check_holes(chosen, size)
    return MaskSet(name=name, seed=SEED, size=size, holes=chosen)


class EvaluationPhotos(Sequence[tuple[str, np.ndarray]]):
    """The first samples of ``index`` in its order: ("<shard>/<key>", uint8 (size, size, 3) RGB) each.

    The short edge is scaled to ``short_edge`` px, then the centre is cropped; nothing is random. A photo that cannot
    be decoded raises UserError: leaving it out would give every later photo another hole.
    """

    def __init__(
        self, index: Index, store: ShardStore, *, size: int, short_edge: int, count: int | None = None
    ) -> None:
        """``count``: the number of photos (default all).

        Raises UserError for a crop larger than the short edge, or smaller than SSIM's window.
        """
        if size < SSIM_WINDOW:
            raise UserError(f"photos of {size} px cannot be measured: SSIM needs {SSIM_WINDOW} px or more")
        if short_edge < size:
            raise UserError(
                f"short edge {short_edge} is smaller than the crop of {size} px; set data.short_edge to at least {size}"
            )
        self._index, self._store, self._size, self._short_edge = index, store, size, short_edge
        self._ends = np.cumsum(index.counts)
        self._count = min(count or index.total, index.total)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> tuple[str, np.ndarray]: ...
    @overload
    def __getitem__(self, number: slice) -> list[tuple[str, np.ndarray]]: ...
    def __getitem__(self, number: int | slice) -> tuple[str, np.ndarray] | list[tuple[str, np.ndarray]]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        place = int(np.searchsorted(self._ends, number, side="right"))
        shard = self._index.shards[place]
        within = number - int(self._ends[place]) + shard.samples
        key, encoded = self._store.sample(place, within)
        name = f"{shard.name}/{key}"
        try:
            photo = self._store.decoded(place, within, partial(decode, short_edge=self._short_edge), encoded=encoded)
        except DecodeError as error:
            raise UserError(
                f"{name} cannot be decoded ({error}); an evaluation needs every photo: build its shards again"
            ) from error
        return name, centre_crop(photo, self._size)


def centre_crop(photo: np.ndarray, size: int) -> np.ndarray:
    """The middle (size, size, 3) of a photo (H, W, 3) that is at least as large; a copy."""
    height, width = photo.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(photo[top : top + size, left : left + size])
