"""Batch norm over the global batch, on any backend.

torch's ``SyncBatchNorm`` refuses CPU tensors, so gloo worlds would train another network than
NCCL worlds. Here each world normalises by the mean and variance of all ranks' photos.

The forward pass does not change the running statistics. It records the batch's statistics, and
``commit_running_statistics`` applies them once the update was applied, so that a skipped step, or a
pass through a frozen network, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from glci_dist.cluster.collectives import collective

_ALONE = ContextVar("_ALONE", default=False)
"""Whether this process computes statistics by itself, whatever the world."""


@contextmanager
def local_statistics() -> Iterator[None]:
    """Let batch norm take the statistics of this rank's photos alone, without collectives: to try a network."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _world_size() -> int:
    if _ALONE.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(local: Tensor) -> Tensor:
    """The rows ``(n, ...)`` of all ranks, concatenated in the order of ranks."""
    if _world_size() == 1:
        return local
    everyone = local.new_empty(_world_size(), *local.shape)
    with collective("the statistics of a batch norm"):
        dist.all_gather(list(everyone.unbind(0)), local)
    return everyone.flatten(0, 1)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel over all ranks' photos, each ``(C,)`` in fp32.

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
    means, variances = _gather(rows).double().unbind(1)
    mean = means.mean(0)
    # Not E[x^2] - E[x]^2, which suffers from cancellation.
    variance = variances.mean(0) + (means - mean).square().mean(0)
    return mean.float(), variance.float()


class _GlobalBatchNorm(torch.autograd.Function):
    """Training-mode batch norm with the statistics of all ranks, for CPU tensors.

    Forward and backward are torch's fused evaluation-mode kernels with the global statistics, which take one small
    collective each. Every rank has equally many photos (the world size divides the global batch).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _statistics(x)
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
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
        if _world_size() > 1:
            with collective("the gradient of a batch norm"):
                dist.all_reduce(total)
        count = _world_size() * x.numel() / x.shape[1]
        mean_grad_xhat, mean_grad = total / count
        # grad_x = scale * (grad_y - mean_grad - xhat * mean_grad_xhat); the kernel computed the first term.
        invstd = torch.rsqrt(variance + ctx.eps)
        scale = weight * invstd
        slope = -scale * mean_grad_xhat
        offset = -scale * mean_grad
        grad_x += F.batch_norm(x, mean, variance, slope, offset, False, 0.0, ctx.eps)
        return grad_x, grad_weight, grad_bias, None


class BatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the global batch, for any world size, with deferred running statistics.

    In training mode the input ``(N, C, H, W)`` is normalised by the statistics of all ranks'
    inputs; in evaluation mode by the running statistics. Source: Ioffe and Szegedy, ICML 2015.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.is_recording = True
        """Whether training passes record their statistics for ``commit_running_statistics``."""
        self.recorded: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        world_size = _world_size()
        if x.device.type == "cpu" and (world_size > 1 or x.dtype == torch.float32):
            y, mean, variance = _GlobalBatchNorm.apply(x, self.weight, self.bias, self.eps)
            count = world_size * x.numel() / x.shape[1]
            unbiased = variance * (count / max(count - 1, 1))
        else:
            # torch's functions update running statistics in place; with momentum 1 these two scratch
            # tensors receive the batch's mean and unbiased variance.
            mean = torch.zeros_like(self.weight, requires_grad=False)
            unbiased = torch.zeros_like(self.weight, requires_grad=False)
            if world_size > 1:
                from torch.nn.modules._functions import SyncBatchNorm

                with collective("the statistics of a batch norm"):
                    y = SyncBatchNorm.apply(
                        x, self.weight, self.bias, mean, unbiased, self.eps, 1.0, dist.group.WORLD, world_size
                    )
            else:
                y = F.batch_norm(x, mean, unbiased, self.weight, self.bias, True, 1.0, self.eps)
        if self.is_recording:
            self.recorded.append((mean.detach(), unbiased.detach()))
        return y


class ConvertedBatchNorm2d(BatchNorm2d):
    """Replaces torch's batch norm in a network of the user's own."""


def commit_running_statistics(network: nn.Module, *, accept: bool) -> None:
    """Blend the statistics recorded since the last call into the running statistics, or discard them."""
    for module in network.modules():
        if not isinstance(module, BatchNorm2d):
            continue
        if accept:
            assert module.running_mean is not None
            assert module.running_var is not None
            momentum = 0.1 if module.momentum is None else module.momentum
            for mean, unbiased in module.recorded:
                module.running_mean.lerp_(mean, momentum)
                module.running_var.lerp_(unbiased, momentum)
            if module.num_batches_tracked is not None:
                module.num_batches_tracked += len(module.recorded)
        module.recorded.clear()


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
