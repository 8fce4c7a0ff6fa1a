"""The only module that knows DeepSpeed: one engine per network.

Mixed precision is torch's autocast, entered by DeepSpeed, over fp32 weights. Gradients are
averaged over the ranks once per update; a gradient that is not finite is never applied.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glci_dist.checkpoints.registry import VectorHandle
from glci_dist.checkpoints.state import VectorShard
from glci_dist.cluster.collectives import collective
from glci_dist.cluster.world import World
from glci_dist.config import EngineConfig, OptimizerConfig
from glci_dist.models import spectral_norm
from glci_dist.models.batch_norm import commit_running_statistics, frozen

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Update:
    """The result of one update."""

    applied: bool
    """False if the gradient was not finite, or beyond the limit: nothing was changed."""
    gradient_norm: float
    """Norm of the gradient averaged over ranks, before clipping."""

    @property
    def is_finite(self) -> bool:
        """Whether the gradient was finite; if it was and was not applied, it was beyond the limit."""
        return math.isfinite(self.gradient_norm)


class Engine:
    """A network with its optimiser, trained by DeepSpeed on this rank's share of the global batch.

    ``network`` must be equal on all ranks; DeepSpeed also broadcasts its parameters.
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
        self._limit = self._norm = math.inf
        if world.size == 1 and not config.zero_stage:
            # DeepSpeed would copy every gradient into buckets and back to average it over one rank.
            self._engine.allreduce_gradients = _no_op
        else:
            self._engine.allreduce_gradients = _in_collective(self._engine.allreduce_gradients)
        if config.zero_stage:
            self._intercept_norm()

    def __call__(self, *inputs: Any) -> Any:
        """The network's output, to be followed by ``backward``."""
        return self._engine(*inputs)

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """The bare network under this engine's autocast; using it changes no state of it.

        Gradients flow to the inputs, not to the parameters, and batch norm does not record the batch.
        A frozen network that is called through its DeepSpeed engine would change the engine's state,
        hence the bare one.
        """
        with frozen(self.network), self._autocast():
            yield self.network

    @property
    def loss_scale(self) -> float:
        """Factor on losses before the backward pass, so that small gradients do not underflow (fp16; else 1)."""
        scaler = self._engine.torch_autocast_z0_gradscaler
        return float(scaler.get_scale()) if scaler else 1.0

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of one micro-batch; the last call also averages over the ranks."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss)

    def step(self, lr: float, limit: float = math.inf) -> Update:
        """Apply the accumulated gradient, unless it is not finite or its norm exceeds ``limit``; then clear it.

        Every rank decides alike, as the decision depends on the averaged gradient.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        update = self._step_replicated(limit) if self._config.zero_stage == 0 else self._step_partitioned(limit)
        commit_running_statistics(self.network, accept=update.applied)
        if update.applied:
            spectral_norm.advance(self.network)
        return update

    def reset(self, weights: Mapping[str, Tensor]) -> None:
        """Load ``weights``, the network's whole state dict, and clear the optimiser's state."""
        self.network.load_state_dict(weights)
        self.optimizer.state.clear()
        if self._config.zero_stage:
            self._engine.optimizer.refresh_fp32_params()

    def optimizer_state(self, world: World) -> dict[str, Any]:
        """This rank's share of the optimiser's state: a ``VectorShard`` of each vector, and the scalars.

        Each kind of state (Adam's ``exp_avg``, ``exp_avg_sq``) is one vector over all parameters in their
        order, the same for every world size and ZeRO stage. Each rank has an equal range of it, or with
        ZeRO stage 1 its own partition. There are no vectors before the first update.
        """
        total = _numel(self.network)
        scaler = self._engine.torch_autocast_z0_gradscaler
        numbers: dict[str, Any] = {"scaler": scaler.state_dict() if scaler else {}}
        if self._config.zero_stage:
            first, last = self._own_range(world)
            states = [(0, self.optimizer.state.get(self._partition(), {}))]
        else:
            first, last = world.rank * total // world.size, (world.rank + 1) * total // world.size
            offsets = itertools.accumulate((p.numel() for p in self.network.parameters()), initial=0)
            pairs = zip(offsets, self.network.parameters(), strict=False)
            states = [(offset, self.optimizer.state.get(parameter, {})) for offset, parameter in pairs]
        for name in _vectors_in(states[0][1]):
            if self._config.zero_stage:
                pieces = [states[0][1][name][: last - first]]
            else:
                pieces = [
                    state[name].reshape(-1)[max(first - offset, 0) : last - offset]
                    for offset, state in states
                    if offset < last and offset + state[name].numel() > first
                ]
            numbers[name] = VectorShard(first, total, pieces)
        steps = {float(state["step"]) for _, state in states if "step" in state}
        if len(steps) > 1 or (steps and not all("step" in state for _, state in states)):
            raise RuntimeError(f"parameters of one network were updated {sorted(steps)} times: no such state is saved")
        numbers["step"] = steps.pop() if steps else None
        return numbers

    def load_optimizer_state(self, saved: Mapping[str, Any], world: World) -> None:
        """Restore what ``optimizer_state`` returned, for any world size and ZeRO stage; load the weights first."""
        vectors = {name: value for name, value in saved.items() if isinstance(value, VectorHandle)}
        self.optimizer.state.clear()
        if self._config.zero_stage:
            parameter = self._partition()
            first, last = self._own_range(world)
            targets = [(first, last, parameter)]
            self._engine.optimizer.refresh_fp32_params()
        else:
            ends = list(itertools.accumulate(p.numel() for p in self.network.parameters()))
            targets = [
                (end - parameter.numel(), end, parameter)
                for end, parameter in zip(ends, self.network.parameters(), strict=True)
            ]
        for first, last, parameter in targets:
            state: dict[str, Tensor] = {}
            for name, vector in vectors.items():
                values = torch.zeros(parameter.numel())
                values[: last - first] = vector.read(first, last)
                state[name] = values.view(parameter.shape).to(parameter.device)
            if vectors:
                # Fused optimisers need the step count on the parameters' device, the others on the CPU.
                fused = self.optimizer.param_groups[0].get("fused")
                state["step"] = torch.tensor(float(saved["step"]), device=parameter.device if fused else "cpu")
                self.optimizer.state[parameter] = state
        scaler = self._engine.torch_autocast_z0_gradscaler
        if saved["scaler"] and scaler is not None:
            scaler.load_state_dict(saved["scaler"])

    def _partition(self) -> Tensor:
        """ZeRO stage 1: this rank's partition of the flattened weights, padded at the end."""
        (partition,) = self._engine.optimizer.single_partition_of_fp32_groups
        return partition

    def _own_range(self, world: World) -> tuple[int, int]:
        """The range of ``_partition`` in the vector over all parameters."""
        total, each = _numel(self.network), self._partition().numel()
        return min(world.rank * each, total), min((world.rank + 1) * each, total)

    def _intercept_norm(self) -> None:
        """Read the gradient norm inside ZeRO stage 1's step; report one beyond the limit to it as an overflow."""
        optimizer = self._engine.optimizer
        if any(any(padding) for padding in optimizer.round_robin_bit16_padding) or optimizer.round_robin_gradients:
            raise RuntimeError("DeepSpeed laid the parameters out in another order than the network's")
        measure = optimizer.scaled_global_norm

        def measured(*args: Any, **kwargs: Any) -> Any:
            norm = measure(*args, **kwargs)
            # DeepSpeed returns -1 for a norm that is not finite.
            self._norm = float(norm) if norm >= 0 else math.inf
            return norm if self._norm <= self._limit else norm * math.inf

        optimizer.scaled_global_norm = measured

    def _step_replicated(self, limit: float) -> Update:
        scaler = self._engine.torch_autocast_z0_gradscaler
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients, foreach=True))
        if scaler is not None:
            norm /= scaler.get_scale()
        # fp16: the scaler itself skips a step that overflowed, and lowers its scale.
        if (norm > limit and math.isfinite(norm)) or (scaler is None and not math.isfinite(norm)):
            self._engine.zero_grad()
            return Update(False, norm)
        self._engine.step()
        return Update(math.isfinite(norm), norm)

    def _step_partitioned(self, limit: float) -> Update:
        self._limit, self._norm = limit, math.inf
        with collective("the weights of a ZeRO update"):
            self._engine.step()
        return Update(bool(self._engine.was_step_applied()) and math.isfinite(self._norm), self._norm)

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES.get(self._config.precision, torch.bfloat16)
        return torch.autocast(self._device, dtype=dtype, enabled=self._config.precision != "fp32")


@dataclass(frozen=True)
class OptimizerState:
    """An engine's optimiser state, as a stateful part of a checkpoint."""

    engine: Engine
    world: World

    def state_dict(self) -> dict[str, Any]:
        return self.engine.optimizer_state(self.world)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.engine.load_optimizer_state(state, self.world)


def _no_op(*_args: Any, **_kwargs: Any) -> None:
    pass


def _in_collective(function: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any, **kwargs: Any) -> Any:
        with collective("the mean of a network's gradient"):
            return function(*args, **kwargs)

    return inside


def _vectors_in(state: Mapping[str, Any]) -> list[str]:
    """The kinds of state that have one number per weight."""
    return [name for name, value in state.items() if isinstance(value, Tensor) and value.dim()]


def _numel(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


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
        # Gradients are summed over ranks in fp32, whatever the autocast dtype.
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
    # DeepSpeed picks its accelerator at import; engine.device=cpu must also work on a GPU machine.
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
        # If mpirun started torchrun, this is mpirun's, and DeepSpeed refuses two values that differ.
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = os.environ["LOCAL_RANK"]
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # A shared-memory collective for inference only; it would be compiled at the first start.
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
