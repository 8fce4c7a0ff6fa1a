"""A rank's share of a batch on the training device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from glci_dist.data.batch import Batch
from glci_dist.data.masks import render_masks


@dataclass(frozen=True)
class DeviceBatch:
    """A rank's share of a batch, or one micro-batch of it, on the training device."""

    photos: Tensor
    """``(N, 3, H, W)`` in [0, 1], channels last."""
    masks: Tensor
    """``(N, 1, H, W)``, 1 in the hole."""
    fake_patches: Tensor
    """``(N, 2)``: left, top of the local patch on the completed photo."""
    real_patches: Tensor
    """``(N, 2)``: left, top of the local patch on the real photo."""
    slots: range
    """The photos' slots in the global batch."""
    patch: int
    """Side of the local patches, px."""

    def micro_batches(self, count: int) -> Iterator[DeviceBatch]:
        """``count`` equal micro-batches, in the order of slots."""
        share = len(self.slots) // count
        for start in range(0, len(self.slots), share):
            part = slice(start, start + share)
            yield DeviceBatch(
                self.photos[part],
                self.masks[part],
                self.fake_patches[part],
                self.real_patches[part],
                self.slots[part],
                self.patch,
            )


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Move a batch to ``device``: uint8 photos to float, boxes and strokes to masks."""
    # A channels-last view of the bytes: no copy before the conversion to float.
    photos = batch.photos.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
    boxes = batch.boxes.to(device, non_blocking=True)
    strokes = batch.strokes.to(device, non_blocking=True)
    masks = render_masks(boxes, strokes, photos.shape[-1])
    if batch.hole_pixels is not None:
        masks = torch.maximum(masks, batch.hole_pixels.to(device, non_blocking=True).unsqueeze(1).float())
    return DeviceBatch(
        photos=photos,
        masks=masks,
        fake_patches=batch.fake_patches.to(device, non_blocking=True),
        real_patches=batch.real_patches.to(device, non_blocking=True),
        slots=batch.slots,
        patch=batch.patch,
    )
