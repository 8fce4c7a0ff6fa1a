"""Pixel metrics: l1 in the hole, PSNR and SSIM of the composite.

Defined as in published results (mmagic's Global&Local): one value per photo, to be averaged over photos. Compared as
float32: a network's output is not rounded to 8 bits first, which would change PSNR by less than 0.01 dB (OpenCV's
Telea outputs 8 bits).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PSNR_LIMIT = 100.0
"""dB; the value for a composite equal to the photo, so that one such photo does not make the mean infinite."""
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def photo_metrics(composites: Tensor, photos: Tensor, masks: Tensor) -> dict[str, np.ndarray]:
    """All metrics of this module by name, float64 (B,) each.

    ``hole_l1_x100``: 100 x mean |difference| over the hole, lower is better; ``psnr_db`` over the whole composite and
    ``ssim``, at most 1, higher is better. Composites and photos: float32 (B, 3, H, W) in [0, 1]; masks (B, 1, H, W).
    """
    return {
        "hole_l1_x100": hole_l1(composites, photos, masks).double().numpy(),
        "psnr_db": psnr(composites, photos).double().numpy(),
        "ssim": ssim(composites, photos).double().numpy(),
    }


def composite(completed: Tensor, photos: Tensor, masks: Tensor) -> Tensor:
    """``completed`` inside the hole, the photo outside: (B, 3, H, W), selected and so exact."""
    return torch.where(masks > 0.5, completed, photos)


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] to uint8 (B, H, W, 3), rounded to the nearest."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def hole_l1(completed: Tensor, photos: Tensor, masks: Tensor) -> Tensor:
    """100 x mean |difference| over each photo's hole: (B,). Raises ValueError for an empty hole."""
    hole_values = masks.sum(dim=(1, 2, 3)) * photos.shape[1]
    if bool((hole_values == 0).any()):
        raise ValueError("a mask without a hole has no l1 in the hole")
    return 100 * ((completed - photos).abs() * masks).sum(dim=(1, 2, 3)) / hole_values


def jumps_across_edge(pictures: Tensor, masks: Tensor) -> Tensor:
    """Mean |difference| of the neighbouring pixels of which one is in the hole: (B,); nan where there is no such pair.

    Pictures float32 (B, 3, H, W) in [0, 1], masks (B, 1, H, W). In composites over the same in their photos it is the
    seam: 1 where the hole's edge cannot be told by it.
    """
    total, pairs = pictures.new_zeros(len(pictures)), pictures.new_zeros(len(pictures))
    for axis in (2, 3):
        length = pictures.shape[axis] - 1
        one, other = (pictures.narrow(axis, start, length) for start in (0, 1))
        across = (masks.narrow(axis, 0, length) != masks.narrow(axis, 1, length)).to(pictures.dtype)
        total = total + ((one - other).abs() * across).sum((1, 2, 3))
        pairs = pairs + pictures.shape[1] * across.sum((1, 2, 3))
    return total / pairs


def psnr(completed: Tensor, photos: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each photo (B, 3, H, W) in [0, 1]: (B,) dB, at most ``PSNR_LIMIT``."""
    # Imported here: torchmetrics takes 1.5 s to import.
    from torchmetrics.functional.image import peak_signal_noise_ratio

    values = peak_signal_noise_ratio(completed, photos, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=PSNR_LIMIT)


def ssim(completed: Tensor, photos: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each photo (B, 3, H, W) in [0, 1]: (B,).

    11 x 11 Gaussian window of sigma 1.5, per channel, mean over the valid region (windows that lie wholly on the
    photo), as in the paper, scikit-image and mmagic. torchmetrics pads by reflection and averages over every pixel,
    so its map is cropped by half a window here. Raises ValueError for photos smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(photos.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"photos of {tuple(photos.shape[-2:])} px are smaller than SSIM's window")
    _, similarity = structural_similarity_index_measure(
        completed,
        photos,
        sigma=SSIM_SIGMA,
        kernel_size=SSIM_WINDOW,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    border = SSIM_WINDOW // 2
    return similarity[..., border:-border, border:-border].mean(dim=(1, 2, 3))
