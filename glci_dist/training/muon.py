"""Muon: updates of weight matrices with equal singular values (Jordan et al. 2024, "Muon: an optimizer for hidden
layers in neural networks"), as large as Adam's (Liu et al. 2025, "Muon is scalable for LLM training")."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5: applied five times, it takes every x from 0.005 to 1 to between 0.68 and 1.14."""
_STEPS = 5
_ADAM_RMS = 0.2
"""The root mean square of what Adam's updates usually are, relative to the learning rate."""
_LEAST_SIDE = 16
"""Of a matrix; with fewer rows or columns, as of a layer to colours, there is little to make equal."""


class Muon(torch.optim.Optimizer):
    """Muon for weights that are matrices (of a convolution: output channels by all else), Adam for all others.

    Learning rates are those of Adam. State: ``exp_avg`` and ``step`` of every parameter, ``exp_avg_sq`` of Adam's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """``betas``, ``eps``: Adam's; the first of ``betas`` is also Muon's momentum. ``weight_decay``: L2 penalty."""
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "fused": True})
        every = [parameter for group in self.param_groups for parameter in group["params"]]
        self._matrices = [parameter for parameter in every if is_matrix(parameter)]
        others = [parameter for parameter in every if not is_matrix(parameter)]
        self._adam = torch.optim.Adam(others, lr, betas, eps, weight_decay, fused=True) if others else None
        self._momentum = betas[0]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("Muon evaluates no closure")
        (group,) = self.param_groups
        if self._adam is not None:
            # One state of all parameters, whichever way it was filled.
            self._adam.state = self.state
            self._adam.param_groups[0]["lr"] = group["lr"]
            self._adam.step()
        for matrix in self._matrices:
            if matrix.grad is not None:
                self._update(matrix, matrix.grad, group["lr"], group["weight_decay"])

    @staticmethod
    def state_of(parameter: Tensor) -> tuple[str, ...]:
        """The states with a number per weight that a parameter has after its first update."""
        return ("exp_avg",) if is_matrix(parameter) else ("exp_avg", "exp_avg_sq")

    def _update(self, matrix: nn.Parameter, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[matrix]
        if not state:
            state["step"], state["exp_avg"] = torch.zeros((), device=matrix.device), torch.zeros_like(matrix)
        if weight_decay:
            gradient = gradient.add(matrix, alpha=weight_decay)
        average = state["exp_avg"].lerp_(gradient, 1 - self._momentum)
        # Nesterov's look ahead.
        direction = gradient.lerp(average, self._momentum).flatten(1)
        update = orthogonal(direction).view(matrix.shape)
        matrix.sub_(update, alpha=lr * _ADAM_RMS * max(direction.shape) ** 0.5)
        state["step"] += 1


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon updates it: it has rows and columns, at least 16 of both."""
    return parameter.dim() > 1 and min(parameter.shape[0], parameter[0].numel()) >= _LEAST_SIDE


def orthogonal(matrix: Tensor) -> Tensor:
    """``matrix`` ``(m, n)``, fp32, with its singular values brought near 1, by Newton and Schulz's iteration.

    Those below 0.005 of the root of their squares' sum stay smaller. 0 stays 0. The iteration is that of the smaller
    square of the matrix alone, which has fewer numbers; fp32 is precise enough for it, bf16 is not.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
    a, b, c = _POLYNOMIAL
    square, product = x @ x.mT, None
    for left in reversed(range(_STEPS)):
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if left:
            square = factor @ square @ factor
    x = product @ x
    return x.mT if is_tall else x
