"""What a diagnosis reads tells what it says it tells."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glci_dist.models.batch_norm import BatchNorm2d, commit_running_statistics
from glci_dist.training.gan_metrics import batch_norm_gap, checkerboard_energy, diversity, share_in_hole


def textures(count: int, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def holes(count: int, size: int = 32) -> Tensor:
    masks = torch.zeros(count, 1, size, size)
    masks[:, :, 5:26, 3:27] = 1
    return masks


@pytest.mark.parametrize("period", [2, 4])
def test_a_checkerboard_has_lattice_energy_and_texture_of_the_same_strength_has_not(period: int) -> None:
    texture, masks = 0.4 + 0.2 * textures(4), holes(4)
    along = torch.arange(32)
    board = ((along[:, None] // (period // 2) + along[None, :] // (period // 2)) % 2).float()
    regular = 0.4 + texture.std() / 0.5 * board.expand(4, 3, 32, 32)
    assert (checkerboard_energy(regular, masks) > 5 * checkerboard_energy(texture, masks)).all()
    # Outside the hole it does not count, and what is smooth has none.
    assert checkerboard_energy(torch.where(masks > 0, torch.tensor(0.5), regular), masks).max() < 1e-12
    smooth = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    assert checkerboard_energy(smooth, holes(1)).max() < 1e-6


def test_diversity_is_of_the_patches_around_the_holes_two_by_two() -> None:
    images = textures(5)
    corners = torch.tensor([[0, 0], [4, 8], [2, 2], [3, 1], [0, 0]])
    found = diversity(images, corners, 16)
    cut = [images[i, :, y : y + 16, x : x + 16] for i, (x, y) in enumerate(corners.tolist())]
    expected = ((cut[0] - cut[1]).square().mean() + (cut[2] - cut[3]).square().mean()) / 2
    assert found is not None
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    same = diversity(images[:1].expand(4, -1, -1, -1), torch.zeros(4, 2, dtype=torch.int64), 16)
    assert same is not None
    assert float(same) == 0
    assert diversity(images[:1], corners[:1], 16) is None


def test_the_share_in_the_hole_is_that_of_the_squared_gradient() -> None:
    gradients, masks = torch.ones(2, 3, 32, 32), holes(2)
    assert float(share_in_hole(gradients, masks)) == pytest.approx(21 * 24 / 32**2)
    assert float(share_in_hole(gradients * masks, masks)) == pytest.approx(1)
    assert float(share_in_hole(torch.zeros(2, 3, 32, 32), masks)) == 0


def test_the_batch_norm_gap_is_in_running_standard_deviations() -> None:
    norm = BatchNorm2d(2)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    assert batch_norm_gap(norm) is None
    x = torch.zeros(4, 2, 3, 3)
    x[:, 0], x[:, 1] = 5.0, -1.0
    norm(x)
    found = batch_norm_gap(norm)
    assert found is not None
    assert float(found) == pytest.approx((4 / 2 + 3 / 3) / 2, rel=1e-4)
    commit_running_statistics(norm, accept=True)
    assert batch_norm_gap(norm) is None
