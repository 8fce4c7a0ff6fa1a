"""Distances between sets of features, and between feature maps of two pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_EPS = 1e-10


def frechet(one: Tensor, other: Tensor, weights: Tensor | None = None) -> float:
    """Frechet distance between Gaussians fitted to two sets of features, rows of ``(N, D)`` and ``(M, D)``.

    |mean1 - mean2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)), covariances over N - 1 (Heusel et al., NeurIPS 2017). The
    trace of the square root is the sum of the singular values of R1 R2^T, where C = R^T R: exact, in float64,
    also with fewer photos than features. ``weights``: multiplicity of each row, the same for both sets (then N = M).
    Raises ValueError for fewer than two rows.
    """
    (mean1, root1), (mean2, root2) = (_gaussian(each.double(), weights) for each in (one, other))
    cross = torch.linalg.svdvals(root1 @ root2.T).sum()
    spread = root1.square().sum() + root2.square().sum() - 2 * cross
    # Rounding can leave a hair below zero for equal sets.
    return max(0.0, float((mean1 - mean2).square().sum() + spread))


def _gaussian(features: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean ``(D,)`` and a root R ``(min(N, D), D)`` of the covariance R^T R."""
    if weights is not None:
        # Rows of weight 0 would only make the decomposition larger.
        used = weights > 0
        features, weights = features[used], weights[used].double()
    else:
        weights = torch.ones(len(features), dtype=torch.float64)
    total = float(weights.sum())
    if total < 2:
        raise ValueError(f"a distribution of {total:.0f} photo(s) has no covariance")
    mean = (weights[:, None] * features).sum(0) / total
    rows = (weights / (total - 1)).sqrt()[:, None] * (features - mean)
    if rows.shape[0] > rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r").R
    return mean, rows


def perceptual(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Distance between two pictures' feature maps, each layer ``(N, C, H, W)``: ``(N,)``, 0 for equal ones.

    The vector at each position is scaled to unit length; the squared differences are averaged over positions and
    summed over layers (Zhang et al., CVPR 2018, without learned channel weights).
    """
    return torch.stack(
        [(_unit(a) - _unit(b)).square().sum(1).mean((1, 2)) for a, b in zip(one, other, strict=True)]
    ).sum(0)


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True).sqrt() + _EPS)
