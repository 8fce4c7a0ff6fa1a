"""Boxes, strokes and corners become masks and patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from glci_dist.config import HolesConfig
from glci_dist.data.holes import draw_holes
from glci_dist.data.masks import _GatherPatches, crop_patches, render_masks


def test_a_mask_is_one_inside_its_boxes_and_zero_elsewhere() -> None:
    holes = draw_holes(HolesConfig(kind="boxes", min_side=8), 64, seed=1, step=2, slots=range(200))
    masks = render_masks(torch.from_numpy(holes.boxes), torch.from_numpy(holes.strokes), 64)
    expected = np.zeros((200, 1, 64, 64), np.float32)
    for mask, boxes in zip(expected, holes.boxes, strict=True):
        for left, top, width, height in boxes:
            mask[0, top : top + height, left : left + width] = 1
    assert masks.dtype == torch.float32
    assert (masks.numpy() == expected).all()


def test_a_mask_holds_the_pixels_within_the_radius_of_a_stroke() -> None:
    holes = draw_holes(HolesConfig(kind="freeform"), 64, seed=1, step=2, slots=range(8))
    masks = render_masks(torch.from_numpy(holes.boxes), torch.from_numpy(holes.strokes), 64)[:, 0].numpy() > 0
    rows, columns = np.mgrid[:64, :64] + 0.5
    for mask, strokes in zip(masks, holes.strokes.astype(np.float64), strict=True):
        beyond = np.full((64, 64), np.inf)
        for x0, y0, x1, y1, radius in strokes[strokes[:, 4] > 0]:
            # The distance to many points of the segment, instead of the closed form that is tested.
            for share in np.linspace(0, 1, 200):
                x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
                beyond = np.minimum(beyond, np.hypot(columns - x, rows - y) - radius)
        clear = np.abs(beyond) > 0.01
        assert (mask == (beyond < 0))[clear].all()
        assert clear.mean() > 0.9


def by_slicing(images: Tensor, corners: Tensor, patch: int) -> Tensor:
    return torch.stack(
        [
            image[:, top : top + patch, left : left + patch]
            for image, (left, top) in zip(images, corners.tolist(), strict=True)
        ]
    )


def by_index(images: Tensor, corners: Tensor, patch: int) -> Tensor:
    """How a GPU crops."""
    patches: Tensor = _GatherPatches.apply(images, corners, patch)
    return patches


@pytest.mark.parametrize("crop", [crop_patches, by_index])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_patches_and_their_gradient_are_those_of_slicing(crop: object, memory_format: torch.memory_format) -> None:
    assert callable(crop)
    corners = torch.tensor([[0, 0], [7, 3], [12, 10], [3, 10]], dtype=torch.int32)
    images = torch.randn(4, 3, 20, 22).contiguous(memory_format=memory_format)
    weights = torch.randn(4, 3, 10, 10)
    results = []
    for function in (crop, by_slicing):
        leaf = images.clone(memory_format=torch.preserve_format).requires_grad_()
        patches = function(leaf, corners, 10)
        (patches**2 * weights).sum().backward()
        assert leaf.grad is not None
        results.append((patches.detach(), leaf.grad))
    (patches, gradient), (expected, expected_gradient) = results
    assert torch.equal(patches, expected)
    assert torch.equal(gradient, expected_gradient)
    assert patches.is_contiguous(memory_format=memory_format)
    assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["box", "boxes", "freeform"])
def test_a_gpu_makes_the_masks_and_patches_of_a_cpu(kind: str) -> None:
    holes = draw_holes(HolesConfig(kind=kind), 64, seed=1, step=2, slots=range(100))
    boxes, strokes = torch.from_numpy(holes.boxes), torch.from_numpy(holes.strokes)
    corners, images = torch.from_numpy(holes.fake_patches), torch.randn(100, 3, 64, 64)
    on_gpu = render_masks(boxes.cuda(), strokes.cuda(), 64).cpu()
    # A pixel whose middle lies on a stroke's edge may fall on either side.
    assert (on_gpu != render_masks(boxes, strokes, 64)).float().mean() < 1e-4
    cropped = crop_patches(images.cuda(), corners.cuda(), 40).cpu()
    assert torch.equal(cropped, crop_patches(images, corners, 40))
