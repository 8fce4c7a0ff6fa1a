"""Baselines without learning: what a network has to beat at least."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

CompletionMethod = Callable[[Tensor, Tensor], Tensor]
"""(photos uint8 (B, H, W, 3), masks float32 (B, 1, H, W), 1 in the hole) -> float32 (B, 3, H, W) in [0, 1].

The photos are black inside the hole. What it returns outside the hole is ignored.
"""

TELEA_RADIUS = 3
"""px, as in OpenCV's tutorial. Measured on faces at 64 px with holes of 19 to 38 px (l1 x100, PSNR):
radius 1 11.4 and 23.3, radius 2 11.3 and 23.6, radius 3 11.4 and 23.6, radius 5 11.6 and 23.7."""


def mean_colour(colour: Sequence[float]) -> CompletionMethod:
    """Fills every hole with ``colour``, RGB in [0, 1]: the corpus mean, which is also training's fill colour."""
    fill = torch.tensor([float(value) for value in colour]).reshape(1, 3, 1, 1)

    def complete(photos: Tensor, masks: Tensor) -> Tensor:
        return fill.expand(len(photos), 3, *masks.shape[-2:])

    return complete


def telea(photos: Tensor, masks: Tensor) -> Tensor:
    """OpenCV's fast-marching inpainting (Telea 2004), on 8 bits; a ``CompletionMethod``."""
    completed = [
        cv2.inpaint(photo, mask, TELEA_RADIUS, cv2.INPAINT_TELEA)
        for photo, mask in zip(photos.numpy(), masks[:, 0].numpy().astype(np.uint8), strict=True)
    ]
    return torch.from_numpy(np.stack(completed)).permute(0, 3, 1, 2).float() / 255
