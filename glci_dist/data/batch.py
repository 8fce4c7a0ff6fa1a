"""One rank's share of a step, as the loader hands it to the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Replacement:
    """A sample that could not be decoded, so that the next one of its shard stands in its slot."""

    shard: str
    key: str
    reason: str
    slot: int
    """The slot in the global batch."""


@dataclass(frozen=True)
class Batch:
    """The photos, holes and patches of one rank's B slots at a step; every coordinate is in px."""

    step: int
    slots: range
    """The slots in the global batch."""
    patch: int
    """Side of the local patches."""
    photos: Tensor
    """uint8 (B, H, W, 3), RGB."""
    boxes: Tensor
    """int32 (B, M, 4): left, top, width, height of each rectangle of the hole; width 0: unused."""
    strokes: Tensor
    """float32 (B, K, 5): x0, y0, x1, y1, radius of each capsule of the hole; radius 0: unused. K may be 0."""
    fake_patches: Tensor
    """int32 (B, 2): left, top of the local patch on the completed photo; contains the hole where it fits."""
    real_patches: Tensor
    """int32 (B, 2): left, top of the local patch on the real photo, drawn independently of the hole."""
    hole_pixels: Tensor | None
    """uint8 (B, H, W), 1 in the hole, of hole kinds that are neither boxes nor strokes; None: there are none."""
    keys: tuple[str, ...]
    """``shard-000003.tar/01234`` for each slot."""
    replaced: tuple[Replacement, ...]
    remade: tuple[str, ...] = ()
    """What became of loader workers that were lost in making it, so that others made it again."""

    def __reduce__(self) -> tuple[Any, ...]:
        # As arrays: between processes each tensor would cost a file of shared memory and a socket's round trip.
        return _rebuild, tuple(value.numpy() if isinstance(value, Tensor) else value for value in vars(self).values())


def _rebuild(*values: Any) -> Batch:
    tensors: list[Any] = [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in values]
    return Batch(*tensors)
