"""Distances agree with independent implementations on the same inputs."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from glci_dist.evaluation.distances import frechet, perceptual


def features(rows: int, columns: int, seed: int) -> Tensor:
    """Features of uneven spread and offset, as a network's are; float32 (rows, columns)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.rand(columns, columns, generator=generator) - 0.3
    return torch.relu(torch.randn(rows, columns, generator=generator) @ mixing / columns**0.5 + 0.4)


def by_square_root(one: np.ndarray, other: np.ndarray) -> float:
    """The formula as it stands in the paper, in numpy and scipy: torch-fidelity's and pytorch-fid's way."""
    covariances = [np.cov(each, rowvar=False) for each in (one, other)]
    # A hair on the diagonal, as they do where there are fewer photos than features.
    jitter = np.eye(one.shape[1]) * 1e-9
    root = scipy.linalg.sqrtm((covariances[0] + jitter) @ (covariances[1] + jitter)).real
    difference = one.mean(0) - other.mean(0)
    return float(difference @ difference + sum(np.trace(each) for each in covariances) - 2 * np.trace(root))


@pytest.mark.parametrize(("rows", "columns"), [(300, 20), (60, 60), (25, 80)])
def test_the_frechet_distance_agrees_with_its_formula(rows: int, columns: int) -> None:
    one, other = features(rows, columns, 1).double(), 1.2 * features(rows + 7, columns, 2).double() + 0.1
    expected = by_square_root(one.numpy(), other.numpy())
    assert frechet(one, other) == pytest.approx(expected, rel=1e-4)


def test_the_frechet_distance_agrees_with_torchmetrics() -> None:
    one, other = features(400, 30, 3).double(), features(500, 30, 4).double() * 0.9
    expected = _compute_fid(one.mean(0), one.T.cov(), other.mean(0), other.T.cov())
    assert frechet(one, other) == pytest.approx(float(expected), rel=1e-4)


def test_equal_sets_are_no_distance_apart() -> None:
    one = features(40, 90, 5)
    assert frechet(one, one.clone()) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(50, 10), (12, 30)])
def test_a_row_of_weight_two_counts_as_if_it_stood_there_twice(rows: int, columns: int) -> None:
    one, other = features(rows, columns, 6), features(rows, columns, 7)
    weights = torch.arange(rows) % 4
    repeated = [each.repeat_interleave(weights, 0) for each in (one, other)]
    assert frechet(one, other, weights) == pytest.approx(frechet(*repeated), rel=1e-9)


def test_one_photo_is_no_distribution() -> None:
    with pytest.raises(ValueError, match="1 photo"):
        frechet(features(1, 3, 8), features(5, 3, 9))


def test_the_perceptual_distance_agrees_with_its_formula() -> None:
    generator = torch.Generator().manual_seed(10)
    shapes = [(3, 4, 8, 8), (3, 7, 5, 6)]
    one, other = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    expected = np.zeros(3)
    for a, b in zip(one, other, strict=True):
        for photo in range(3):
            places = 0.0
            for y in range(a.shape[2]):
                for x in range(a.shape[3]):
                    u, v = a[photo, :, y, x].numpy(), b[photo, :, y, x].numpy()
                    places += float(((u / np.linalg.norm(u) - v / np.linalg.norm(v)) ** 2).sum())
            expected[photo] += places / (a.shape[2] * a.shape[3])
    assert perceptual(one, other).numpy() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(perceptual(one, one), torch.zeros(3))
