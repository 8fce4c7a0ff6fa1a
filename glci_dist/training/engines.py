"""The only module that knows DeepSpeed: one engine per network.

Mixed precision is torch's autocast, entered by DeepSpeed, over fp32 weights. Gradients are
averaged over the ranks once per update; a gradient that is not finite is never applied.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glci_dist.checkpoints.registry import VectorHandle, VectorShard
from glci_dist.cluster.collectives import collective
from glci_dist.cluster.world import World
from glci_dist.config import EngineConfig, OptimizerConfig
from glci_dist.models import spectral_norm
from glci_dist.models.batch_norm import commit_running_statistics, frozen
from glci_dist.training.muon import Muon

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
        self.optimizer = _build_optimizer(network, optimizer, world)
        self._config, self._world = config, world
        self._engine, *_ = deepspeed.initialize(
            model=network,
            optimizer=self.optimizer,
            config=_deepspeed_config(config, global_batch=global_batch, world_size=world.size),
        )
        self._engine.train()
        self._limit = self._norm = math.inf
        if world.size == 1 and not config.zero_stage:
            # DeepSpeed would copy every gradient into buckets and back to average it over one rank.
            self._engine.allreduce_gradients = lambda *_args, **_kwargs: None
        else:
            average = collective("the mean of a network's gradient")
            self._engine.allreduce_gradients = average(self._engine.allreduce_gradients)
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
        dtype = _DTYPES.get(self._config.precision)
        with frozen(self.network), torch.autocast(self._world.device.type, dtype=dtype, enabled=dtype is not None):
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

    def state_dict(self) -> dict[str, Any]:
        """This rank's share of the optimiser's state: a ``VectorShard`` of each vector, and the scalars.

        Each kind of state (Adam's ``exp_avg``, ``exp_avg_sq``) is one vector over all parameters in their
        order, the same for every world size and ZeRO stage; 0 where a parameter has no such state. Each rank has an
        equal range of it, or with ZeRO stage 1 its own partition. There are no vectors before the first update.
        """
        total, rank, size = _numel(self.network), self._world.rank, self._world.size
        scaler = self._engine.torch_autocast_z0_gradscaler
        numbers: dict[str, Any] = {"scaler": scaler.state_dict() if scaler else {}}
        targets = self._targets()
        first, last = targets[0][:2] if self._config.zero_stage else (rank * total // size, (rank + 1) * total // size)
        states = [(offset, tensor, self.optimizer.state.get(tensor, {})) for offset, _, tensor in targets]
        # Those with a number per weight.
        whole = (
            name for *_, state in states for name, value in state.items() if torch.is_tensor(value) and value.dim()
        )
        for name in dict.fromkeys(whole):
            # The first: with ZeRO stage 1, a rank's only one, which may be empty.
            pieces = [
                _flat(state, name, tensor)[max(first - offset, 0) : last - offset]
                for offset, tensor, state in states
                if offset == first or (offset < last and offset + tensor.numel() > first)
            ]
            numbers[name] = VectorShard(first, total, pieces)
        steps = {float(state["step"]) for _, _, state in states if "step" in state}
        if len(steps) > 1 or (steps and not all("step" in state for _, _, state in states)):
            raise RuntimeError(f"parameters of one network were updated {sorted(steps)} times: no such state is saved")
        numbers["step"] = steps.pop() if steps else None
        return numbers

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned, for any world size and ZeRO stage; load the weights first."""
        vectors = {name: value for name, value in saved.items() if isinstance(value, VectorHandle)}
        self.optimizer.state.clear()
        if self._config.zero_stage:
            self._engine.optimizer.refresh_fp32_params()
        for first, last, parameter in self._targets():
            state: dict[str, Tensor] = {}
            for name, vector in vectors.items():
                if isinstance(self.optimizer, Muon) and name not in self.optimizer.state_of(parameter):
                    continue
                values = torch.zeros(parameter.numel())
                values[: last - first] = vector.read(first, last)
                # As the optimiser makes it: laid out as the parameter is.
                state[name] = torch.empty_like(parameter).copy_(values.view(parameter.shape))
            if vectors:
                # Fused optimisers need the step count on the parameters' device, the others on the CPU.
                fused = self.optimizer.param_groups[0].get("fused")
                state["step"] = torch.tensor(float(saved["step"]), device=parameter.device if fused else "cpu")
                self.optimizer.state[parameter] = state
        scaler = self._engine.torch_autocast_z0_gradscaler
        if saved["scaler"] and scaler is not None:
            scaler.load_state_dict(saved["scaler"])

    def _targets(self) -> list[tuple[int, int, Tensor]]:
        """The tensors that this rank's optimiser updates, each with its range in the vector over all parameters.

        With ZeRO stage 1 that is one, this rank's partition of the flattened weights, padded at the end.
        """
        if self._config.zero_stage:
            (partition,) = self._engine.optimizer.single_partition_of_fp32_groups
            total, each, rank = _numel(self.network), partition.numel(), self._world.rank
            return [(min(rank * each, total), min((rank + 1) * each, total), partition)]
        ends = itertools.accumulate(parameter.numel() for parameter in self.network.parameters())
        return [(end - each.numel(), end, each) for end, each in zip(ends, self.network.parameters(), strict=True)]

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


def _flat(state: Mapping[str, Any], name: str, parameter: Tensor) -> Tensor:
    """A parameter's state as a vector; zeros if it has none of that name."""
    return (state[name] if name in state else torch.zeros_like(parameter)).reshape(-1)


def _numel(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _build_optimizer(network: nn.Module, config: OptimizerConfig, world: World) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    shared: dict[str, Any] = {"lr": 1.0, "eps": config.eps, "weight_decay": config.weight_decay}
    if config.kind == "adadelta":
        return torch.optim.Adadelta(parameters, rho=config.rho, foreach=True, **shared)
    beta1, beta2 = config.betas
    if config.kind == "muon":
        return Muon(parameters, betas=(beta1, beta2), rank=world.rank, ranks=world.size, **shared)
    return torch.optim.Adam(parameters, betas=(beta1, beta2), fused=True, **shared)


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
