"""The Context Encoder (Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from glci_dist.models.batch_norm import BatchNorm2d
from glci_dist.models.completion import MaskedInput, colours_from_logits, convolution, upsampling
from glci_dist.models.sizes import bottleneck_side


class ChannelwiseFullyConnected(nn.Module):
    """One fully connected layer per channel over its ``side`` x ``side`` map (section 3.1 there)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        cells = side * side
        self.weight = nn.Parameter(torch.empty(channels, cells, cells).uniform_(-1, 1) / cells**0.5)
        self.bias = nn.Parameter(torch.zeros(channels, 1, cells))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, side, side)`` to the same shape."""
        maps = x.flatten(2).transpose(0, 1)
        mixed = torch.matmul(maps, self.weight.to(maps.dtype)) + self.bias.to(maps.dtype)
        return mixed.transpose(0, 1).reshape(x.shape).contiguous(memory_format=torch.channels_last)


class ContextEncoder(nn.Module):
    """Encoder-decoder with a channel-wise fully connected bottleneck, for one photo size.

    The encoder halves the photo until at most 8 px remain; ``size`` must be divisible by 2 as often.
    """

    def __init__(
        self, *, size: int, width: float = 1.0, fill: str = "mean", mirror: bool = False, residual: bool = False
    ) -> None:
        """``fill``, ``mirror``, ``residual``: as for ``CompletionNetwork``."""
        super().__init__()
        self._residual = residual
        side = bottleneck_side(size)
        halvings = (size // side).bit_length() - 1
        channels = [max(1, round(width * min(64 * 2**i, 512))) for i in range(halvings)]
        self.fill = MaskedInput(fill, mirror)
        encoder: list[nn.Module] = []
        for inputs, outputs in zip([self.fill.channels, *channels[:-1]], channels, strict=True):
            encoder += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), BatchNorm2d(outputs), nn.LeakyReLU(0.2, True)]
        narrow = channels[-1]
        bottleneck = [ChannelwiseFullyConnected(narrow, side), *convolution(narrow, narrow, 1)]
        decoder: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels[::-1]):
            decoder += [*upsampling(inputs, outputs, "deconvolution")]
        self.layers = nn.Sequential(*encoder, *bottleneck, *decoder, nn.ConvTranspose2d(channels[0], 3, 4, 2, 1))

    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        """The raw output ``(N, 3, H, W)`` in [0, 1], fp32; same arguments as ``CompletionNetwork``."""
        inputs = self.fill(photos, masks)
        return colours_from_logits(self.layers(inputs), inputs[:, :3] if self._residual else None)
