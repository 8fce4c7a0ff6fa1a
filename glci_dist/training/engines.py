"""The one place that knows DeepSpeed: one engine a network.

Mixed precision is torch's autocast, entered by DeepSpeed, over fp32 weights. Gradients are
averaged over the ranks once an update; a gradient that is not finite is never applied.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glci_dist.cluster.world import World
from glci_dist.config import EngineConfig, OptimizerConfig
from glci_dist.models.batch_norm import commit_running_statistics, looked_through

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Update:
    """What became of one update."""

    applied: bool
    """False where the gradient was not finite: weights and running statistics stand as before."""
    gradient_norm: float
    """Of the gradient averaged over ranks, before clipping."""


class Engine:
    """A network with its optimiser, trained by DeepSpeed on this rank's share of the global batch.

    ``network`` must be equal on all ranks; its parameters are broadcast once more all the same.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerConfig,
        *,
        config: EngineConfig,
        global_batch: int,
        world: World,
    ) -> None:
        deepspeed = _import_deepspeed(world)
        network.to(world.device)
        self.network = network
        self.optimizer = _build_optimizer(network, optimizer)
        self._config = config
        self._device = world.device.type
        self._engine, *_ = deepspeed.initialize(
            model=network,
            optimizer=self.optimizer,
            config=_deepspeed_config(config, global_batch=global_batch, world_size=world.size),
        )
        self._engine.train()
        self.collective_seconds = 0.0
        """Host seconds in gradient collectives since it was last set to 0."""
        self._engine.allreduce_gradients = self._timed(self._engine.allreduce_gradients)

    def __call__(self, *inputs: Any) -> Any:
        """The network's output, to be followed by ``backward``."""
        return self._engine(*inputs)

    @contextmanager
    def looked_through(self) -> Iterator[nn.Module]:
        """The bare network under this engine's precision, leaving no trace in it.

        Gradients flow through to the inputs; none is left in the network, and its batch norm
        uses the batch without remembering it. A network frozen inside its DeepSpeed engine would
        touch the engine's state, hence the bare one.
        """
        with looked_through(self.network), self._autocast():
            yield self.network

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of one micro-batch; the last one's also averages over the ranks."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss)

    def step(self, lr: float) -> Update:
        """Apply the accumulated gradient, unless it is not finite; then forget it.

        The decision is the same on every rank: it is taken on the averaged gradient.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        update = self._step_whole() if self._config.zero_stage == 0 else self._step_partitioned()
        commit_running_statistics(self.network, accept=update.applied)
        return update

    def optimizer_state(self) -> dict[str, Any]:
        """The optimiser's state (whole with ZeRO stage 0, this rank's part with stage 1) and fp16's loss scale."""
        scaler = self._engine.torch_autocast_z0_gradscaler
        return {"optimizer": self.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else {}}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Take up an ``optimizer_state`` of the same world, after the network's weights were loaded."""
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self._engine.torch_autocast_z0_gradscaler.load_state_dict(state["scaler"])
        if self._config.zero_stage:
            self._engine.optimizer.refresh_fp32_params()

    def _step_whole(self) -> Update:
        scaler = self._engine.torch_autocast_z0_gradscaler
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients, foreach=True))
        if scaler is not None:
            # fp16: the scaler itself skips a step that overflowed, and lowers its scale.
            norm /= scaler.get_scale()
            self._engine.step()
            return Update(norm == norm and norm != float("inf"), norm)
        if not _is_finite(norm):
            self._engine.zero_grad()
            return Update(False, norm)
        self._engine.step()
        return Update(True, norm)

    def _step_partitioned(self) -> Update:
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return Update(bool(self._engine.was_step_applied()) and _is_finite(norm), norm)

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES.get(self._config.precision, torch.bfloat16)
        return torch.autocast(self._device, dtype=dtype, enabled=self._config.precision != "fp32")

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.collective_seconds += time.perf_counter() - start
            return result

        return timed


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _build_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    if config.kind == "adadelta":
        return torch.optim.Adadelta(
            parameters, lr=1.0, rho=config.rho, eps=config.eps, weight_decay=config.weight_decay, foreach=True
        )
    beta1, beta2 = config.betas
    return torch.optim.Adam(
        parameters, lr=1.0, betas=(beta1, beta2), eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


def _deepspeed_config(config: EngineConfig, *, global_batch: int, world_size: int) -> dict[str, Any]:
    precision: dict[str, Any] = {}
    if config.precision != "fp32":
        precision = {"torch_autocast": {"enabled": True, "dtype": str(_DTYPES[config.precision]).split(".")[1]}}
    return {
        "train_batch_size": global_batch,
        "train_micro_batch_size_per_gpu": global_batch // world_size // config.accumulation,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clip,
        # Sums over ranks in fp32, whatever the precision of the activations.
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": config.zero_stage,
            # Buckets of 50 MB: DeepSpeed's default of 2 GB would double a large network's gradients.
            "reduce_bucket_size": 12_500_000,
            "allgather_bucket_size": 12_500_000,
            "overlap_comm": False,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **precision,
    }


def _import_deepspeed(world: World) -> Any:
    # DeepSpeed picks its accelerator at import; on a GPU machine engine.device=cpu must hold too.
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # A shared-memory collective that only inference calls; it would be compiled at the first start.
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
