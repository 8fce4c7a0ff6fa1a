"""Muon: updates of weight matrices with equal singular values (Jordan et al. 2024, "Muon: an optimizer for hidden
layers in neural networks"), as large as Adam's (Liu et al. 2025, "Muon is scalable for LLM training")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glci_dist.cluster.collectives import collective

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5: applied five times, it takes every x from 0.0015 to 1 to between 0.68 and 1.21."""
_STEPS = 5
_ADAM_RMS = 0.2
"""The root mean square of what Adam's updates usually are, relative to the learning rate."""
_LEAST_SIDE = 16
"""Of a matrix; with fewer rows or columns, as of a layer to colours, there is little to make equal."""


class Muon(torch.optim.Optimizer):
    """Muon for weights that are matrices (the first dimension by all others), Adam for the rest.

    Learning rates are those of Adam. State: ``exp_avg`` and ``step`` of every parameter, ``exp_avg_sq`` of Adam's. Each
    rank makes the updates of some matrices, and has the others' from their ranks: that divides the work, and all ranks'
    weights stay bitwise equal, though one should round otherwise.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """``parameters``: equal on all of the ``ranks``.

        ``betas``, ``eps``: Adam's. The first of ``betas`` is also Muon's momentum, ``eps`` the root mean square of an
        averaged gradient below which a matrix's update, too, becomes smaller. ``weight_decay``: an L2 penalty with
        Adam; matrices are made smaller by it times the learning rate.
        """
        # As of torch's fused optimisers, the step count is on the parameters' device.
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "fused": True})
        every = [parameter for group in self.param_groups for parameter in group["params"]]
        others = [parameter for parameter in every if not is_matrix(parameter)]
        self._adam = torch.optim.Adam(others, lr, betas, eps, weight_decay, fused=True) if others else None
        self._momentum, self._eps, self._rank = betas[0], eps, rank
        self._shares = _shares([parameter for parameter in every if is_matrix(parameter)], ranks)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a collective of all ranks."""
        if closure is not None:
            raise ValueError("Muon evaluates no closure")
        (group,) = self.param_groups
        if self._adam is not None:
            # One state of all parameters, whichever way it was filled.
            self._adam.state = self.state
            self._adam.param_groups[0]["lr"] = group["lr"]
            self._adam.step()
        # By the rank that makes their updates.
        shares = [[matrix for matrix in share if matrix.grad is not None] for share in self._shares]
        updates = [self._updates(share, is_own=rank == self._rank) for rank, share in enumerate(shares)]
        if len(shares) > 1:
            with collective("the updates of Muon"):
                waits = [dist.broadcast(each, rank, async_op=True) for rank, each in enumerate(updates) if len(each)]
                for wait in waits:
                    wait.wait()
        for share, flat in zip(shares, updates, strict=True):
            for matrix, update in zip(share, flat.split([each.numel() for each in share]), strict=True):
                if group["weight_decay"]:
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.sub_(update.view(matrix.shape), alpha=group["lr"] * _ADAM_RMS * max(_sides(matrix)) ** 0.5)

    @staticmethod
    def state_of(parameter: Tensor) -> tuple[str, ...]:
        """The states with a number per weight that a parameter has after its first update."""
        return ("exp_avg",) if is_matrix(parameter) else ("exp_avg", "exp_avg_sq")

    def _updates(self, matrices: Sequence[nn.Parameter], *, is_own: bool) -> Tensor:
        """Average their gradients; the averages made orthogonal, one after the other, if they are this rank's."""
        directions = [self._direction(matrix) for matrix in matrices]
        flat = torch.empty(sum(each.numel() for each in directions), device=matrices[0].device if matrices else None)
        if is_own:
            for direction, place in zip(directions, flat.split([each.numel() for each in directions]), strict=True):
                update = orthogonal(direction, least=self._eps * direction.numel() ** 0.5)
                place.view(direction.shape).copy_(update)
        return flat

    def _direction(self, matrix: nn.Parameter) -> Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["step"], state["exp_avg"] = torch.zeros((), device=matrix.device), torch.zeros_like(matrix)
        state["step"] += 1
        average = state["exp_avg"].lerp_(matrix.grad, 1 - self._momentum)
        # Nesterov's look ahead.
        return matrix.grad.lerp(average, self._momentum).flatten(1)


def _shares(matrices: Sequence[nn.Parameter], ranks: int) -> list[list[nn.Parameter]]:
    """The matrices of each rank, such that all have about as much to do; no more shares than there are matrices."""
    shares: list[list[nn.Parameter]] = [[] for _ in range(max(1, min(ranks, len(matrices))))]
    work = [0] * len(shares)
    for matrix in sorted(matrices, key=_work, reverse=True):
        least = work.index(min(work))
        shares[least].append(matrix)
        work[least] += _work(matrix)
    return shares


def _sides(matrix: Tensor) -> tuple[int, int]:
    return matrix.shape[0], matrix[0].numel()


def _work(matrix: Tensor) -> int:
    """About how many multiplications its update takes."""
    rows, columns = sorted(_sides(matrix))
    return 4 * rows**2 * columns + 36 * rows**3


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon updates it: the weight of a linear layer or a 2D convolution, with at least 16 rows and columns."""
    return parameter.dim() in (2, 4) and min(_sides(parameter)) >= _LEAST_SIDE


def orthogonal(matrix: Tensor, *, least: float) -> Tensor:
    """``matrix`` ``(m, n)``, fp32, with its singular values brought near 1, by Newton and Schulz's iteration.

    Those below 0.0015 of the root of their squares' sum, or of ``least`` (> 0) where that is greater, stay smaller.
    The iteration is that of the smaller square of the matrix alone, which has fewer numbers; fp32 is precise enough for
    it, bf16 and TF32 are not.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x / x.norm().clamp(min=least)
    a, b, c = _POLYNOMIAL
    with _full_precision():
        square, product = x @ x.mT, None
        for left in reversed(range(_STEPS)):
            factor = torch.addmm(square, square, square, beta=b, alpha=c)
            factor.diagonal().add_(a)
            product = factor if product is None else factor @ product
            if left:
                square = factor @ square @ factor
        x = product @ x
    return x.mT if is_tall else x


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 in products of fp32 matrices, whatever the process has chosen."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)
