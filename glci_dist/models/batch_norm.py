"""Batch norm over the global batch, or over groups of its slots, on any backend.

torch's ``SyncBatchNorm`` refuses CPU tensors, so gloo worlds would train another network than
NCCL worlds. Here each world normalises by the mean and variance of all ranks' photos, or with
``model.batch_norm.group`` by those of each run of so many consecutive slots, which needs no collective
in the passes where a rank holds whole groups.

The forward pass does not change the running statistics. It records the batch's statistics, and
``commit_running_statistics`` applies them once the update was applied, so that a skipped step, or a
pass through a frozen network, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from glci_dist.cluster.collectives import collective
from glci_dist.cluster.subgroups import group_of_consecutive_ranks

_ALONE = ContextVar("_ALONE", default=False)
"""Whether this process computes statistics by itself, whatever the world."""

_ROWS_PER_SLOT = ContextVar("_ROWS_PER_SLOT", default=1)
"""Rows of a batch norm's input that belong to one slot, adjacent."""


@contextmanager
def local_statistics() -> Iterator[None]:
    """Let batch norm take the statistics of this rank's photos alone, without collectives: to try a network."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


@contextmanager
def rows_per_slot(count: int) -> Iterator[None]:
    """In the block, ``count`` adjacent rows of every input are of one slot: as many count as one photo of a group."""
    token = _ROWS_PER_SLOT.set(count)
    try:
        yield
    finally:
        _ROWS_PER_SLOT.reset(token)


def set_group(network: nn.Module, group: int) -> None:
    """Let every batch norm of ``network`` normalise over runs of ``group`` consecutive slots; 0: over all."""
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.group = group


def _world_size() -> int:
    if _ALONE.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _group_layout(rows: int, group: int) -> tuple[int, int]:
    """Of a group's rows, how many lie on this rank, and over how many ranks they are spread."""
    if not group or _ALONE.get():
        return rows, _world_size()
    group *= _ROWS_PER_SLOT.get()
    if rows % group == 0:
        return group, 1
    if group % rows == 0 and _world_size() % (group // rows) == 0:
        return rows, group // rows
    raise RuntimeError(f"{rows} rows on each of {_world_size()} ranks hold no whole groups of {group}")


def _gather(local: Tensor, ranks: int) -> Tensor:
    """The rows ``(n, ...)`` of a group's ranks, concatenated in the order of ranks."""
    if ranks == 1:
        return local
    everyone, group = local.new_empty(ranks, *local.shape), group_of_consecutive_ranks(ranks)
    with collective("the statistics of a batch norm"):
        dist.all_gather(list(everyone.unbind(0)), local, group=group)
    return everyone.flatten(0, 1)


def _statistics(x: Tensor, ranks: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel over the photos of a group's ranks, each ``(C,)`` in fp32.

    In fp32 they are computed from one row per photo, summed in the order of slots, and so are bitwise
    equal for any distribution of the photos over ranks. Without that, torch's fused CPU kernel, which
    sums naively, has a variance error of 6e-6, which flips enough ReLUs to move a gradient by 1%. In
    bf16 rounding dominates anyway, and one row per rank by the fused kernel is faster.
    """
    if x.dtype == torch.float32:
        variance, mean = torch.var_mean(x, (2, 3), correction=0)
        rows = torch.stack([mean, variance], 1)
    else:
        # With fp32 scratch tensors (mean, unbiased variance) the kernel returns fp32.
        scratch = torch.zeros(2, x.shape[1], dtype=torch.float32)
        rows = torch.stack(torch.batch_norm_update_stats(x, scratch[0], scratch[1], 1.0))[None]
    means, variances = _gather(rows, ranks).double().unbind(1)
    mean = means.mean(0)
    # Not E[x^2] - E[x]^2, which suffers from cancellation.
    variance = variances.mean(0) + (means - mean).square().mean(0)
    return mean.float(), variance.float()


class _SharedBatchNorm(torch.autograd.Function):
    """Training-mode batch norm with the statistics of a group's ranks, for CPU tensors.

    Forward and backward are torch's fused evaluation-mode kernels with the group's statistics, which take one small
    collective each. Every rank has equally many photos (the world size divides the global batch).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _statistics(x, ranks)
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.ranks = eps, ranks
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        grad_y = gradients[0]
        x, weight, mean, variance = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_y, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        total = torch.stack([grad_weight, grad_bias])
        if ctx.ranks > 1:
            group = group_of_consecutive_ranks(ctx.ranks)
            with collective("the gradient of a batch norm"):
                dist.all_reduce(total, group=group)
        count = ctx.ranks * x.numel() / x.shape[1]
        mean_grad_xhat, mean_grad = total / count
        # grad_x = scale * (grad_y - mean_grad - xhat * mean_grad_xhat); the kernel computed the first term.
        invstd = torch.rsqrt(variance + ctx.eps)
        scale = weight * invstd
        slope = -scale * mean_grad_xhat
        offset = -scale * mean_grad
        grad_x += F.batch_norm(x, mean, variance, slope, offset, False, 0.0, ctx.eps)
        return grad_x, grad_weight, grad_bias, None, None


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the global batch or groups of its slots, with deferred running statistics.

    In training mode the input ``(N, C, H, W)`` is normalised by the statistics of all ranks'
    inputs, or of each group's; in evaluation mode by the running statistics. Source: Ioffe and Szegedy, ICML 2015;
    groups: Hoffer et al., "Train longer, generalize better", NeurIPS 2017, where each is one device's share.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.group = 0
        """Consecutive slots that are normalised together; 0: all of the batch's."""
        self.is_recording = True
        """Whether training passes record their statistics for ``commit_running_statistics``."""
        self.recorded: list[tuple[Tensor, Tensor]] = []
        """For each pass, means and unbiased variances ``(groups on this rank, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        rows, ranks = _group_layout(x.shape[0], self.group)
        if rows == x.shape[0]:
            y, mean, unbiased = self._normalised(x, ranks)
            means, variances = mean[None], unbiased[None]
        else:
            groups = [self._normalised(group, 1) for group in x.split(rows)]
            y = torch.cat([normalised for normalised, _, _ in groups])
            means, variances = torch.stack([mean for _, mean, _ in groups]), torch.stack([v for _, _, v in groups])
        if self.is_recording:
            self.recorded.append((means.detach(), variances.detach()))
        return y

    def _normalised(self, x: Tensor, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
        """One group's rows on this rank, and the mean and unbiased variance ``(C,)`` of all its rows."""
        if x.device.type == "cpu" and (ranks > 1 or x.dtype == torch.float32):
            y, mean, variance = _SharedBatchNorm.apply(x, self.weight, self.bias, self.eps, ranks)
            count = ranks * x.numel() / x.shape[1]
            return y, mean, variance * (count / max(count - 1, 1))
        # torch's functions update running statistics in place; with momentum 1 these two scratch
        # tensors receive the batch's mean and unbiased variance.
        mean = torch.zeros_like(self.weight, requires_grad=False)
        unbiased = torch.zeros_like(self.weight, requires_grad=False)
        if ranks > 1:
            from torch.nn.modules._functions import SyncBatchNorm

            group = group_of_consecutive_ranks(ranks)
            with collective("the statistics of a batch norm"):
                y = SyncBatchNorm.apply(x, self.weight, self.bias, mean, unbiased, self.eps, 1.0, group, ranks)
        else:
            y = F.batch_norm(x, mean, unbiased, self.weight, self.bias, True, 1.0, self.eps)
        return y, mean, unbiased


class ConvertedBatchNorm2d(BatchNorm2d):
    """Replaces torch's batch norm in a network of the user's own."""


def commit_running_statistics(network: nn.Module, *, accept: bool) -> None:
    """Blend the statistics recorded since the last call into the running statistics, or discard them.

    Over the global batch, pass by pass; with groups, the mean over the groups of all passes, ranks and micro-batches at
    once, in one collective for all layers.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm2d)]
    if accept:
        _blend_groups([norm for norm in norms if norm.recorded and norm.group])
        for norm in norms:
            if not norm.group:
                for means, variances in norm.recorded:
                    _blend(norm, means[0], variances[0])
    for norm in norms:
        norm.recorded.clear()


def _blend_groups(norms: Sequence[BatchNorm2d]) -> None:
    """Blend the mean over all groups, on every rank, into the running statistics of each norm."""
    if not norms:
        return
    # In double, where sums of so few fp32 numbers are all but exact, so that no order of them matters. A group that is
    # spread over ranks counts once on each, as all others do.
    sums = [sum(torch.stack(each).double().sum(1) for each in norm.recorded) for norm in norms]
    total = torch.cat([torch.as_tensor(each) for each in sums], 1)
    if _world_size() > 1:
        with collective("the running statistics of batch norms"):
            dist.all_reduce(total)
    for norm, of_norm in zip(norms, total.split([norm.num_features for norm in norms], 1), strict=True):
        count = _world_size() * sum(len(means) for means, _ in norm.recorded)
        mean, unbiased = (of_norm / count).float()
        _blend(norm, mean, unbiased)


def _blend(norm: BatchNorm2d, mean: Tensor, unbiased: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    momentum = 0.1 if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(unbiased, momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Freeze ``network``: no gradients of its parameters, no running statistics."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    norms = [m for m in network.modules() if isinstance(m, BatchNorm2d)]
    for parameter in parameters:
        parameter.requires_grad_(False)
    for norm in norms:
        norm.is_recording = False
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for norm in norms:
            norm.is_recording = True
