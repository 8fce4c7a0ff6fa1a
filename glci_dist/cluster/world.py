"""The one place that knows ranks: the process group, this rank's device and its threads."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from glci_dist.config import EngineConfig
from glci_dist.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once for the run."""
        return self.rank == 0

    @property
    def host(self) -> str:
        return socket.gethostname()

    def slots(self, global_batch: int) -> range:
        """The slots of a step that this rank computes."""
        share = global_batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def from_main(self, value: Any) -> Any:
        """Rank 0's ``value``, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def to_main(self, value: Any) -> list[Any]:
        """Every rank's ``value`` in the order of ranks, on rank 0; elsewhere an empty list."""
        boxes: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, boxes, dst=0)
        return boxes or []

    def agree(self, error: str | None) -> None:
        """Raise ``UserError`` on every rank with the first rank's message, if any rank has one."""
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(errors, error)
        said = next((message for message in errors if message), None)
        if said is not None:
            raise UserError(said)


def choose_device(name: str) -> str:
    """``cpu`` or ``cuda`` for ``engine.device``; raises ``UserError`` for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device=cuda, but torch sees no GPU here: use engine.device=auto or cpu")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone (gloo has no error class of its own)."""
    return isinstance(error, dist.DistBackendError) or "gloo" in str(error) or "Connection" in str(error)


@contextmanager
def joined(config: EngineConfig) -> Iterator[World]:
    """This process's place in the world that the launcher describes, for as long as the block lasts."""
    kind = choose_device(config.device)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{local_size} ranks on a machine of {torch.cuda.device_count()} GPU(s): start one rank a GPU "
                "(torchrun --nproc-per-node), or use engine.device=cpu"
            )
        torch.cuda.set_device(device)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.threads or max(1, cores // local_size))
    # A discriminator that wins has gradients so small that their squares are denormal, and those cost
    # a CPU a hundred times a normal number's time.
    torch.set_flush_denormal(True)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    backend = "nccl" if kind == "cuda" else "gloo"
    timeout = timedelta(seconds=config.timeout_s)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank, local_size, device)
        # No rank tears its connections down while another still needs them.
        dist.barrier()
    finally:
        dist.destroy_process_group()
