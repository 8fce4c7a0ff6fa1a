"""The context discriminators of GLCIC (SIGGRAPH 2017, table 2): logits, never a sigmoid before the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glci_dist.models.batch_norm import BatchNorm2d

_CHANNELS = (64, 128, 256, 512, 512, 512)
_FEATURES = 1024


def convolutions(size: int) -> int:
    """How many stride-2 convolutions an image of ``size`` px gets: until at most 5 px remain.

    This is the rule that the paper's four networks follow: 256 px: 6, 160: 5, 128: 5, 96: 5.
    """
    count = 0
    while size > 5:
        size = -(-size // 2)
        count += 1
    return count


class Branch(nn.Module):
    """One discriminator without its last layer: ``(N, 3, size, size)`` to ``(N, 1024 * width)``."""

    def __init__(self, size: int, *, width: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for channels in _CHANNELS[: convolutions(size)]:
            outputs = max(1, round(width * channels))
            layers += [
                nn.Conv2d(inputs, outputs, 5, 2, 2, bias=False),
                BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            inputs, size = outputs, -(-size // 2)
        self.features = max(1, round(width * _FEATURES))
        self.layers = nn.Sequential(*layers)
        self.connected = nn.Sequential(nn.Linear(inputs * size * size, self.features), nn.ReLU(inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        return self.connected(self.layers(images).flatten(1))


class ContextDiscriminators(nn.Module):
    """Global and local branch, concatenated and mapped to one logit a photo.

    ``kind``: ``global_local`` (GLCIC), or one branch alone: ``global``, ``local``.
    """

    def __init__(self, *, size: int, patch: int, width: float = 1.0, kind: str = "global_local") -> None:
        super().__init__()
        self.globally = Branch(size, width=width) if "global" in kind else None
        self.locally = Branch(patch, width=width) if "local" in kind else None
        features = sum(branch.features for branch in (self.globally, self.locally) if branch is not None)
        self.decide = nn.Linear(features, 1)

    def judge(self, photos: Tensor, patches: Tensor) -> Tensor:
        """Logits ``(N,)``, fp32: above 0 for "real".

        ``photos``: ``(N, 3, size, size)`` in [0, 1]; ``patches``: ``(N, 3, patch, patch)`` of them.
        """
        seen = [
            branch(images)
            for branch, images in ((self.globally, photos), (self.locally, patches))
            if branch is not None
        ]
        return self.decide(torch.cat(seen, 1)).squeeze(1).float()

    def forward(self, *pairs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Logits of each (photos, patches) pair. Batch norm sees each pair apart."""
        return tuple(self.judge(photos, patches) for photos, patches in pairs)
