"""InceptionV3 as used for FID (Heusel et al., NeurIPS 2017): the same weights, resizing and pooling.

The network of Szegedy et al. ("Rethinking the Inception Architecture", CVPR 2016) in TensorFlow's version of 2015. It
differs from torchvision's in three ways: average pooling excludes the padding, the last block uses max pooling, and
images are resized without half-pixel centres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIDE = 299
FEATURES = 2048
"""Length of the pooled features."""

Kernel = int | tuple[int, int]
Layer = tuple[int, Kernel]
"""Channels and kernel of a convolution of stride 1 that keeps the size."""


class _Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: Kernel, *, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Parallel branches over one input, their outputs concatenated.

    ``branches``: the layers of each branch, by its name. ``forked``: the last two layers of a branch of several share
    their input. ``pooled``: output channels of the pooling branch's convolution; 0: no convolution, and the pooling and
    the last layers of the branches halve the size.
    """

    def __init__(
        self,
        inputs: int,
        branches: Mapping[str, Sequence[Layer]],
        *,
        pooled: int = 0,
        pooling: str = "average",
        forked: bool = False,
    ) -> None:
        super().__init__()
        self._branches: list[list[str]] = []
        self._halves, self._pooling = not pooled, pooling
        for branch, layers in branches.items():
            names = _names(branch, len(layers), forked)
            channels = inputs
            for name, (outputs, kernel) in zip(names, layers, strict=True):
                stride = 2 if self._halves and name == names[-1] else 1
                self.add_module(name, _Convolution(channels, outputs, kernel, stride=stride, padded=stride == 1))
                # Layers "a" and "b" share their input.
                channels = channels if name.endswith("a") else outputs
            self._branches.append(names)
        if pooled:
            self.branch_pool = _Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for names in self._branches:
            y = x
            row = names[:-2] if names[-1].endswith("b") else names
            for name in row:
                y = self.get_submodule(name)(y)
            forked = names[len(row) :]
            outputs += [self.get_submodule(name)(y) for name in forked] or [y]
        if self._halves:
            return torch.cat([*outputs, F.max_pool2d(x, 3, 2)], 1)
        if self._pooling == "maximum":
            pooled = F.max_pool2d(x, 3, 1, 1)
        else:
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*outputs, self.branch_pool(pooled)], 1)


def _names(branch: str, layers: int, forked: bool) -> list[str]:
    """The names that a branch's layers have in the weights."""
    numbers = [*range(1, layers - 1), f"{layers - 1}a", f"{layers - 1}b"] if forked else range(1, layers + 1)
    return [f"{branch}_{number}" for number in numbers] if layers > 1 else [branch]


def _block_a(inputs: int, pooled: int) -> _Block:
    branches: dict[str, list[Layer]] = {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
    }
    return _Block(inputs, branches, pooled=pooled)


def _block_c(inner: int) -> _Block:
    row, column = (1, 7), (7, 1)
    branches: dict[str, list[Layer]] = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(inner, 1), (inner, row), (192, column)],
        "branch7x7dbl": [(inner, 1), (inner, column), (inner, row), (inner, column), (192, row)],
    }
    return _Block(768, branches, pooled=192)


def _block_e(inputs: int, pooling: str) -> _Block:
    row, column = (1, 3), (3, 1)
    branches: dict[str, list[Layer]] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), (384, row), (384, column)],
        "branch3x3dbl": [(448, 1), (384, 3), (384, row), (384, column)],
    }
    return _Block(inputs, branches, pooled=192, pooling=pooling, forked=True)


class InceptionV3(nn.Module):
    """The feature extractor, without the classifier; frozen, in evaluation mode."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """``weights``: of ``pt_inception-2015-12-05-6726825d.pth``. Raises RuntimeError for another network's."""
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, padded=False)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _Block(288, {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]})
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        self.Mixed_7a = _Block(
            768, {"branch3x3": [(192, 1), (320, 3)], "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]}
        )
        self.Mixed_7b = _block_e(1280, "average")
        self.Mixed_7c = _block_e(2048, "maximum")
        self.load_state_dict({name: value for name, value in weights.items() if not name.startswith("fc.")})
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pooled features ``(N, 2048)`` of pictures ``(N, 3, H, W)``, floats in [0, 255]."""
        x = (resize_as_tensorflow1(pictures, _SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))


def resize_as_tensorflow1(pictures: Tensor, side: int) -> Tensor:
    """Bilinear resizing to ``side`` px as in TensorFlow 1: output pixel i is sampled at i x old / new."""
    for axis in (2, 3):
        old = pictures.shape[axis]
        places = torch.arange(side, device=pictures.device) * (old / side)
        low = places.long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        shape = [side if each == axis else 1 for each in range(4)]
        share = (places - low).to(pictures.dtype).view(shape)
        pictures = torch.lerp(pictures.index_select(axis, low), pictures.index_select(axis, high), share)
    return pictures
