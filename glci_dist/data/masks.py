"""Holes and patches on the training device: boxes and strokes to masks, corners to crops. No host sync."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def render_masks(boxes: Tensor, strokes: Tensor, size: int) -> Tensor:
    """Masks float32 (B, 1, size, size), 1 in the hole and 0 elsewhere, on the device of the boxes.

    ``boxes`` (B, M, 4) and ``strokes`` (B, K, 5) as in ``Batch``. A pixel belongs to a stroke when its middle
    lies within the radius of a capsule's segment.
    """
    along = torch.arange(size, device=boxes.device, dtype=boxes.dtype)
    low, high = boxes[:, :, :2, None], (boxes[:, :, :2] + boxes[:, :, 2:])[..., None]
    inside = (along >= low) & (along < high)
    hole = (inside[:, :, 1, :, None] & inside[:, :, 0, None, :]).any(1)
    # One capsule at a time: all at once would hold K images of distances for each photo.
    for number in range(strokes.shape[1]):
        hole |= _capsule(strokes[:, number], size)
    return hole.unsqueeze(1).to(torch.float32)


def crop_patches(images: Tensor, corners: Tensor, patch: int) -> Tensor:
    """The square patches (B, C, patch, patch) of ``images`` (B, C, H, W) whose left, top are ``corners`` (B, 2).

    Differentiable, and in the memory format of ``images``. Every patch lies inside its image.
    """
    if images.device.type == "cpu":
        return _slice_patches(images, corners, patch)
    return _GatherPatches.apply(images, corners, patch)


def _capsule(stroke: Tensor, size: int) -> Tensor:
    """bool (B, size, size): the pixels of one capsule (B, 5)."""
    middles = torch.arange(size, device=stroke.device, dtype=stroke.dtype) + 0.5
    x0, y0, x1, y1, radius = (value[:, None, None] for value in stroke.unbind(1))
    across, down = middles[None, None, :] - x0, middles[None, :, None] - y0
    length_x, length_y = x1 - x0, y1 - y0
    squared = (length_x**2 + length_y**2).clamp_min(1e-12)
    share = ((across * length_x + down * length_y) / squared).clamp(0, 1)
    distance = (across - share * length_x) ** 2 + (down - share * length_y) ** 2
    return (distance <= radius**2) & (radius > 0)


def _slice_patches(images: Tensor, corners: Tensor, patch: int) -> Tensor:
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    rows_first = images.permute(0, 2, 3, 1) if channels_last else images
    axis = 0 if channels_last else 1
    # unbind, not an index for each photo, whose gradient would be a whole batch of zeros.
    cut = [
        image.narrow(axis, top, patch).narrow(axis + 1, left, patch)
        for image, (left, top) in zip(rows_first.unbind(0), corners.tolist(), strict=True)
    ]
    patches = torch.stack(cut)
    return patches.permute(0, 3, 1, 2) if channels_last else patches


class _GatherPatches(torch.autograd.Function):
    """The patches by index, their gradient by the inverse index: no atomics, so the same bits always."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, corners: Tensor, patch: int) -> Tensor:
        ctx.save_for_backward(corners)
        ctx.shape = images.shape
        ctx.channels_last = images.is_contiguous(memory_format=torch.channels_last)
        along = torch.arange(patch, device=images.device)
        columns, rows = (corners[:, axis, None] + along for axis in (0, 1))
        return _gather(images, rows, columns, channels_last=ctx.channels_last)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (corners,) = ctx.saved_tensors
        return _SpreadPatches.apply(gradients[0], corners, ctx.shape[2:], ctx.channels_last), None, None


class _SpreadPatches(torch.autograd.Function):
    """Patches in their places on images of zeros; its gradient, which a penalty on a gradient needs, is their cut."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, corners: Tensor, size: tuple[int, int], channels_last: bool) -> Tensor:
        ctx.save_for_backward(corners)
        ctx.patch = patch = patches.shape[-1]
        rows = torch.arange(size[0], device=patches.device) - corners[:, 1, None]
        columns = torch.arange(size[1], device=patches.device) - corners[:, 0, None]
        inside = _within(rows, patch)[:, None, :, None] & _within(columns, patch)[:, None, None, :]
        spread = _gather(patches, rows.clamp(0, patch - 1), columns.clamp(0, patch - 1), channels_last=channels_last)
        return spread * inside

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (corners,) = ctx.saved_tensors
        return _GatherPatches.apply(gradients[0], corners, ctx.patch), None, None, None


def _within(positions: Tensor, length: int) -> Tensor:
    return (positions >= 0) & (positions < length)


def _gather(images: Tensor, rows: Tensor, columns: Tensor, *, channels_last: bool) -> Tensor:
    """``images`` (B, C, H, W) at ``rows`` (B, h) and ``columns`` (B, w): (B, C, h, w)."""
    photo = torch.arange(images.shape[0], device=images.device)[:, None, None]
    taken = images.permute(0, 2, 3, 1)[photo, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return taken if channels_last else taken.contiguous()
