"""What a completion network is shown in the hole, and what its output is a change of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from glci_dist.models.completion import (
    CompletionNetwork,
    MaskedInput,
    colours_from_logits,
    pyramid_fill,
)
from glci_dist.models.context_encoder import ContextEncoder

COLOUR = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)


def photos_and_masks(size: int = 24, *, count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    masks = torch.zeros(count, 1, size, size)
    for number in range(count):
        masks[number, :, 2 + number : size // 2 + 3 * number, 1 : size - 2 - number] = 1
    return torch.rand(count, 3, size, size, generator=generator), masks


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """``image`` (h, w, 3) at ``height`` x ``width``: pixels' middles are where they are, edges are repeated."""
    result = np.empty((height, width, 3))
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * image.shape[0] / height - 0.5, 0), image.shape[0] - 1)
            x = min(max((column + 0.5) * image.shape[1] / width - 0.5, 0), image.shape[1] - 1)
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            down, across = y - top, x - left
            result[row, column] = (1 - down) * ((1 - across) * image[top, left] + across * image[top, right]) + down * (
                (1 - across) * image[bottom, left] + across * image[bottom, right]
            )
    return result


def filled_one_by_one(photo: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The pyramid of one photo (h, w, 3) with known pixels (h, w), pixel by pixel and by recursion."""
    height, width = known.shape
    if (height, width) == (1, 1):
        return photo if known.all() else np.broadcast_to(COLOUR.flatten().numpy(), (1, 1, 3))
    half = np.zeros((-(-height // 2), -(-width // 2), 3))
    known_half = np.zeros(half.shape[:2], bool)
    for row, column in np.ndindex(*known_half.shape):
        window = (slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
        if known[window].any():
            half[row, column] = photo[window][known[window]].mean(0)
            known_half[row, column] = True
    above = bilinear(filled_one_by_one(half, known_half), height, width)
    return np.where(known[..., None], photo, above)


@pytest.mark.parametrize("size", [4, 12, 20, 32])
def test_the_pyramid_is_averages_of_known_pixels_over_halved_sizes_put_back_up(size: int) -> None:
    photos, masks = photos_and_masks(max(size, 12))
    photos, masks = photos[..., :size, :size], masks[..., :size, :size]
    filled = pyramid_fill(photos, masks, COLOUR)
    for number in range(len(photos)):
        photo, known = photos[number].permute(1, 2, 0).numpy(), masks[number, 0].numpy() == 0
        expected = filled_one_by_one(np.where(known[..., None], photo, 0.0), known)
        np.testing.assert_allclose(filled[number].permute(1, 2, 0).numpy(), expected, atol=2e-6)


def test_known_pixels_stay_as_they_are_and_a_photo_without_any_gets_the_mean_colour() -> None:
    photos, masks = photos_and_masks()
    masks[0] = 1
    filled = pyramid_fill(photos, masks, COLOUR)
    torch.testing.assert_close(filled[0], COLOUR[0].expand(3, 24, 24))
    assert torch.equal(torch.where(masks > 0, 0, filled), torch.where(masks > 0, 0, photos))


def test_a_hole_in_a_plane_of_one_colour_is_filled_with_it() -> None:
    _, masks = photos_and_masks()
    plane = torch.tensor([0.1, 0.7, 0.9]).view(1, 3, 1, 1).expand(3, 3, 24, 24)
    torch.testing.assert_close(pyramid_fill(plane * (1 - masks), masks, COLOUR), plane)


@pytest.mark.parametrize("fill", ["mean", "pyramid"])
@pytest.mark.parametrize("kind", ["glcic", "context_encoder"])
def test_a_residual_of_zero_leaves_the_filled_photo(kind: str, fill: str) -> None:
    photos, masks = photos_and_masks(32)
    if kind == "glcic":
        network: CompletionNetwork | ContextEncoder = CompletionNetwork(width=0.1, fill=fill, residual=True)
    else:
        network = ContextEncoder(size=32, width=0.1, fill=fill, residual=True)
    network.fill.mean_colour.copy_(COLOUR)
    with torch.no_grad():
        for parameter in list(network.parameters())[-2:]:
            parameter.zero_()
        output = network(photos, masks)
        shown = network.fill(photos, masks)
    assert torch.equal(shown[:, 3:], masks)
    torch.testing.assert_close(output, shown[:, :3].clamp(1 / 510, 1 - 1 / 510), atol=1e-6, rtol=0)
    inside = pyramid_fill(photos, masks, COLOUR) if fill == "pyramid" else COLOUR.expand_as(photos)
    torch.testing.assert_close(shown[:, :3], torch.where(masks > 0, inside, photos))


def test_an_output_is_a_change_of_the_fills_logits() -> None:
    logits, filled = torch.tensor([[-1.0, 0.3, 2.0]]), torch.tensor([[0.2, 0.5, 1.0]])
    half_a_level = 1 / 510
    odds = torch.tensor([[0.25, 1.0, (1 - half_a_level) / half_a_level]]) * logits.exp()
    torch.testing.assert_close(colours_from_logits(logits, filled), odds / (1 + odds))
    torch.testing.assert_close(colours_from_logits(logits), 1 / (1 + (-logits).exp()))


def test_the_mean_fill_is_the_papers_and_the_input_ends_with_the_mask() -> None:
    photos, masks = photos_and_masks()
    layer = MaskedInput()
    layer.mean_colour.copy_(COLOUR)
    expected = torch.cat([torch.where(masks > 0, COLOUR.expand_as(photos), photos), masks], 1)
    assert torch.equal(layer(photos, masks), expected)


@pytest.mark.parametrize("fill", ["mean", "pyramid"])
def test_a_mirrored_input_ends_with_the_filled_photo_and_the_mask_from_right_to_left(fill: str) -> None:
    photos, masks = photos_and_masks()
    plain, layer = MaskedInput(fill), MaskedInput(fill, mirror=True)
    seen = plain(photos, masks)
    assert (plain.channels, layer.channels) == (4, 8)
    assert torch.equal(layer(photos, masks), torch.cat([seen, seen[..., range(seen.shape[3] - 1, -1, -1)]], 1))
