"""The completion network of GLCIC (Iizuka, Simo-Serra, Ishikawa, SIGGRAPH 2017, table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glci_dist.models.batch_norm import BatchNorm2d


class MaskedInput(nn.Module):
    """The input layer of every completion network: fills the hole with the mean colour and appends the mask.

    The mean colour is a buffer, so it is saved with the weights.
    """

    mean_colour: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_colour", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        """Photos ``(N, 3, H, W)`` in [0, 1] and masks ``(N, 1, H, W)``, 1 in the hole, to ``(N, 4, H, W)``."""
        filled = torch.lerp(photos, self.mean_colour.expand_as(photos), masks)
        return torch.cat([filled, masks], 1).contiguous(memory_format=torch.channels_last)


def fill_colour(network: nn.Module) -> Tensor:
    """The fill colour ``(1, 3, 1, 1)`` in [0, 1] of a completion network's ``MaskedInput``; not a copy."""
    return next(module for module in network.modules() if isinstance(module, MaskedInput)).mean_colour


def convolution(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU; without a bias, which batch norm would cancel."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def upsampling(inputs: int, outputs: int, kind: str) -> nn.Sequential:
    """Upsampling by 2: ``deconvolution`` (kernel 4, the paper's) or ``resize`` (nearest, then kernel 3).

    ``resize`` causes no checkerboard artefacts.
    """
    if kind == "resize":
        return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), *convolution(inputs, outputs))
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class CompletionNetwork(nn.Module):
    """17 layers, four of them dilated; receptive field 307 px; 6.07 M parameters at width 1.

    ``width`` multiplies every hidden channel count. Sizes must be multiples of 4.
    """

    def __init__(self, *, width: float = 1.0, enlarge: str = "deconvolution") -> None:
        super().__init__()
        c32, c64, c128, c256 = (max(1, round(width * channels)) for channels in (32, 64, 128, 256))
        self.fill = MaskedInput()
        self.layers = nn.Sequential(
            convolution(4, c64, 5),
            convolution(c64, c128, stride=2),
            convolution(c128, c128),
            convolution(c128, c256, stride=2),
            convolution(c256, c256),
            convolution(c256, c256),
            *(convolution(c256, c256, dilation=dilation) for dilation in (2, 4, 8, 16)),
            convolution(c256, c256),
            convolution(c256, c256),
            upsampling(c256, c128, enlarge),
            convolution(c128, c128),
            upsampling(c128, c64, enlarge),
            convolution(c64, c32),
            nn.Conv2d(c32, 3, 3, 1, 1),
        )

    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        """The raw output ``(N, 3, H, W)`` in [0, 1], fp32; it does not depend on the photos inside the hole.

        ``photos``: ``(N, 3, H, W)`` in [0, 1]; ``masks``: ``(N, 1, H, W)``, 1 in the hole.
        """
        return torch.sigmoid(self.layers(self.fill(photos, masks)).float())
