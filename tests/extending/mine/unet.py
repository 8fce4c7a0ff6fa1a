"""A completion network: a small U-Net."""

import torch
from torch import Tensor, nn

from glci_dist.extensions import MaskedInput


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """``size``, the side of the photos in px, is the run's to give; the others stand in the configuration."""

    def __init__(self, *, size: int, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        if size % 2**depth:
            raise ValueError(f"depth={depth} halves photos of {size} px {depth} times: choose a smaller depth")
        channels = [width * 2**level for level in range(depth + 1)]
        self.fill = MaskedInput()
        self.first = block(4, width)
        self.down = nn.ModuleList(block(inputs, 2 * inputs) for inputs in channels[:-1])
        self.up = nn.ModuleList(block(3 * inputs, inputs) for inputs in reversed(channels[:-1]))
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        x = self.first(self.fill(photos, masks))
        kept = []
        for layer in self.down:
            kept.append(x)
            x = layer(nn.functional.max_pool2d(x, 2))
        for layer in self.up:
            x = layer(torch.cat([nn.functional.interpolate(x, scale_factor=2.0), kept.pop()], 1))
        return torch.sigmoid(self.last(x).float())
