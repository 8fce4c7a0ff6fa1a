"""Spectral normalisation: layers whose weights are divided by their largest singular value.

Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018. Unlike in torch's, the
forward pass changes no state: ``advance`` updates the estimate of the singular vector once an update was applied, so
that a frozen network stays bitwise unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FIRST_ITERATIONS = 20


class _Spectral(nn.Module):
    """Base of both layers; ``left``: estimate of the weights' first left singular vector."""

    weight: Tensor
    left: Tensor

    def _init_singular_vector(self) -> None:
        self.register_buffer("left", F.normalize(torch.randn(len(self.weight)), dim=0))
        for _ in range(_FIRST_ITERATIONS):
            self.advance()

    def normalized(self) -> Tensor:
        """The weights divided by their largest singular value; the gradient includes the singular value."""
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            with torch.no_grad():
                right = F.normalize(matrix.t() @ self.left, dim=0)
                left = F.normalize(matrix @ right, dim=0)
            return self.weight / torch.dot(left, matrix @ right)

    @torch.no_grad()
    def advance(self) -> None:
        """One power iteration."""
        matrix = self.weight.flatten(1)
        right = F.normalize(matrix.t() @ self.left, dim=0)
        self.left.copy_(F.normalize(matrix @ right, dim=0))


class SpectralConv2d(_Spectral, nn.Conv2d):
    """``nn.Conv2d`` with spectral normalisation of its weights as a matrix (outputs, inputs x kernel)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> None:
        nn.Conv2d.__init__(self, inputs, outputs, kernel, stride, padding)
        self._init_singular_vector()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.normalized(), self.bias)


class SpectralLinear(_Spectral, nn.Linear):
    """``nn.Linear`` with spectral normalisation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        nn.Linear.__init__(self, inputs, outputs)
        self._init_singular_vector()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalized(), self.bias)


def advance(network: nn.Module) -> None:
    """One power iteration in every layer, after an update that was applied."""
    for module in network.modules():
        if isinstance(module, _Spectral):
            module.advance()
