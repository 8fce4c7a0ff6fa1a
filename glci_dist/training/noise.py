"""Random numbers of adversarial training: a pure function of (seed, purpose, step, slot)."""

from __future__ import annotations

import torch
from torch import Tensor

from glci_dist.data.draws import draws, uniform


def interpolation_weights(*, seed: int, step: int, slots: range) -> Tensor:
    """A uniform number in [0, 1) per slot, float32 ``(len(slots),)``."""
    words = draws(seed=seed, purpose="interpolation", step=step, slots=slots, words=1)
    return torch.from_numpy(uniform(words)[:, 0]).float()


def gaussian(images: Tensor, *, purpose: str, seed: int, step: int, slots: range) -> Tensor:
    """Standard normal numbers with the shape ``(N, 3, H, W)`` and device of ``images``; ``slots``: theirs.

    Equal for a slot for every world size; CPUs and GPUs draw different numbers.
    """
    seeds = draws(seed=seed, purpose=purpose, step=step, slots=slots, words=1)[:, 0]
    noise = torch.empty_like(images, memory_format=torch.contiguous_format)
    for place, word in zip(noise.unbind(0), seeds.tolist(), strict=True):
        place.normal_(generator=torch.Generator(images.device).manual_seed(word % 2**63))
    return noise
