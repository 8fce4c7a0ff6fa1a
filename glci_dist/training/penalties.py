"""Penalties of the discriminators' gradient with respect to what they are shown.

A photo's local patch is cut from the same pixels, so that the gradient is that of both branches. In fp32: squares of
small gradients are lost in half precision. The discriminators must judge each photo by itself (no batch norm).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from glci_dist.data.masks import crop_patches

Judge = Callable[[Tensor, Tensor], Tensor]
"""(photos (N, 3, H, W), patches) -> logits (N,)."""


def r1(judge: Judge, photos: Tensor, corners: Tensor, patch: int) -> Tensor:
    """Half the squared norm of the gradient on real photos, a mean over them (Mescheder et al., ICML 2018).

    ``corners``: left, top of the local patches ``(N, 2)``, of ``patch`` px.
    """
    return _gradients(judge, photos, corners, patch).square().sum((1, 2, 3)).mean() / 2


def gradient_penalty(
    judge: Judge, photos: Tensor, completed: Tensor, shares: Tensor, corners: Tensor, patch: int
) -> Tensor:
    """(norm of the gradient - 1)^2 between each photo and its completion (Gulrajani et al., NeurIPS 2017).

    ``shares`` ``(N,)`` in [0, 1): how far from the photo towards its completion.
    """
    between = torch.lerp(photos, completed, shares.view(-1, 1, 1, 1))
    gradients = _gradients(judge, between, corners, patch)
    return (gradients.square().sum((1, 2, 3)).add(1e-12).sqrt() - 1).square().mean()


def _gradients(judge: Judge, images: Tensor, corners: Tensor, patch: int) -> Tensor:
    images = images.detach().float().requires_grad_()
    with torch.autocast(images.device.type, enabled=False):
        logits = judge(images, crop_patches(images, corners, patch))
        (gradients,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradients
