"""What a contest does to the completions, in numbers that a diagnosis can read: each a mean over photos."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glci_dist.data.masks import crop_patches
from glci_dist.models.batch_norm import BatchNorm2d

_LATTICE = 4
"""px: twice enlarged by two, a completion's checkerboard repeats after so many."""


def lattice_energy(images: Tensor, masks: Tensor) -> Tensor:
    """How much of what is fine in the hole repeats on the lattice of the enlargements: ``(N,)``.

    Images ``(N, 3, H, W)`` in [0, 1], H and W multiples of 4, masks ``(N, 1, H, W)``. The difference from the mean of
    3 x 3 pixels, averaged over the hole at each of the 16 places in a lattice of 4 px, squared, averaged. Texture has
    no place there and averages out; a checkerboard (Odena et al., 2016) does not.
    """
    grey = images.mean(1, keepdim=True)
    # What lies at the hole's edge is compared with the photo around it, and is left out.
    masks = 1 - F.max_pool2d(1 - masks, 3, 1, 1)
    fine = (grey - F.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)) * masks
    count, _, height, width = fine.shape
    shape = (count, height // _LATTICE, _LATTICE, width // _LATTICE, _LATTICE)
    sums, counts = (each.view(shape).sum((1, 3)) for each in (fine, masks))
    return (sums / counts.clamp(min=1)).square().mean((1, 2))


def diversity(images: Tensor, corners: Tensor, patch: int) -> Tensor | None:
    """Mean squared difference of the patches around the holes of one slot and the next, two by two: a scalar.

    Images ``(N, 3, H, W)``, ``corners`` ``(N, 2)``. None for fewer than two photos.
    """
    count = len(images) // 2 * 2
    if not count:
        return None
    patches = crop_patches(images[:count], corners[:count], patch)
    return (patches[0::2] - patches[1::2]).square().mean()


def share_in_hole(gradients: Tensor, masks: Tensor) -> Tensor:
    """Which share of the squared gradient at composites ``(N, 3, H, W)`` lies in the hole, a mean over photos."""
    squares = gradients.float().square()
    inside = (squares * masks).sum((1, 2, 3))
    return (inside / squares.sum((1, 2, 3)).clamp(min=1e-30)).mean()


@torch.no_grad()
def batch_norm_gap(network: nn.Module) -> Tensor | None:
    """How far the last batch's means are from the running ones, in running standard deviations; None without any.

    A mean over channels and layers, of what the passes since the last update saw.
    """
    gaps = []
    for module in network.modules():
        if isinstance(module, BatchNorm2d) and module.seen:
            assert module.running_mean is not None
            assert module.running_var is not None
            mean, _ = module.seen[-1]
            gaps.append(((mean - module.running_mean).abs() / (module.running_var + module.eps).sqrt()).mean())
    return torch.stack(gaps).mean() if gaps else None
