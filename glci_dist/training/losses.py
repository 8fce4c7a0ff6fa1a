"""The losses. Each is a mean over photos of a per-photo value, so it does not depend on the world size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from glci_dist.config import LossConfig


def composite(outputs: Tensor, photos: Tensor, masks: Tensor) -> Tensor:
    """The photo outside the hole, the output inside; all ``(N, 3, H, W)``, masks ``(N, 1, H, W)``."""
    return torch.lerp(photos, outputs, masks.expand_as(photos))


def reconstruction(outputs: Tensor, photos: Tensor, masks: Tensor, config: LossConfig) -> Tensor:
    """Squared (``l2``) or absolute (``l1``) error over the ``hole``, the hole with a ``rim``, or the ``photo``.

    A photo's value is the mean over its own region, so large and small holes have the same weight;
    the result is the mean over photos.
    """
    errors = outputs - photos
    errors = errors.square() if config.reconstruction == "l2" else errors.abs()
    if config.region == "photo":
        return errors.mean()
    if config.region == "rim":
        masks = F.max_pool2d(masks, 2 * config.rim + 1, stride=1, padding=config.rim)
    inside = (errors * masks).sum((1, 2, 3))
    return (inside / (photos.shape[1] * masks.sum((1, 2, 3))).clamp(min=1)).mean()


def adversarial(logits: Tensor, config: LossConfig) -> Tensor:
    """The completion network's loss from the logits D ``(N,)`` of its completed photos.

    ``non_saturating``: -log s(D), s the sigmoid; ``saturating``: log(1 - s(D)), as in the paper's equation 3;
    ``hinge`` and ``wasserstein``: -D; ``least_squares``: (D - 1)^2 / 2 (Mao et al., ICCV 2017).
    """
    if config.adversarial == "saturating":
        return -F.softplus(logits).mean()
    if config.adversarial == "non_saturating":
        return F.softplus(-logits).mean()
    if config.adversarial == "least_squares":
        return (logits - 1).square().mean() / 2
    return -logits.mean()


def discriminator_losses(real: Tensor, completed: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """The discriminators' losses on real and on completed photos, from logits R and D ``(N,)``.

    Cross-entropy: -log s(R) and -log(1 - s(D)), with ``label_smoothing`` e -(1 - e) log s(R) - e log(1 - s(R))
    (Salimans et al., NeurIPS 2016); ``hinge``: max(0, 1 - R) and max(0, 1 + D) (Lim and Ye, 2017);
    ``least_squares``: (R - 1)^2 / 2 and D^2 / 2; ``wasserstein``: -R and D (Arjovsky et al., ICML 2017).
    """
    if config.adversarial == "hinge":
        return F.relu(1 - real).mean(), F.relu(1 + completed).mean()
    if config.adversarial == "least_squares":
        return (real - 1).square().mean() / 2, completed.square().mean() / 2
    if config.adversarial == "wasserstein":
        return -real.mean(), completed.mean()
    # softplus(-R) + e R = -(1 - e) log s(R) - e log(1 - s(R))
    return (F.softplus(-real) + config.label_smoothing * real).mean(), F.softplus(completed).mean()


def real_threshold(config: LossConfig) -> float | None:
    """The logit above which a photo is classified as real; None for ``wasserstein``, which has no threshold."""
    return {"least_squares": 0.5, "wasserstein": None}.get(config.adversarial, 0.0)


def feature_matching(completed: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of the discriminators' activations, each ``(N, ...)``, of a photo and of its
    completion, averaged over layers (Wang et al., "pix2pixHD", CVPR 2018).
    """
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in zip(completed, real, strict=True)]).mean()


def total_variation(composites: Tensor, masks: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, at least one of them in the hole: ``(N,)``.

    Composites ``(N, 3, H, W)``, masks ``(N, 1, H, W)``.
    """
    total, count = composites.new_zeros(len(composites)), composites.new_zeros(len(composites))
    for axis in (2, 3):
        length = composites.shape[axis] - 1
        one, other = (composites.narrow(axis, start, length) for start in (0, 1))
        touched = torch.maximum(masks.narrow(axis, 0, length), masks.narrow(axis, 1, length))
        total = total + ((one - other).abs() * touched).sum((1, 2, 3))
        count = count + composites.shape[1] * touched.sum((1, 2, 3))
    return total / count.clamp(min=1)
