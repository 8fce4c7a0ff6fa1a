"""The process group, this rank's device and its threads. No other module knows ranks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from glci_dist import output
from glci_dist.cluster import launchers
from glci_dist.cluster.collectives import collective
from glci_dist.cluster.watchdog import Watchdog
from glci_dist.config import EngineConfig
from glci_dist.errors import Ending, Fault, UserError, is_short_of_files

_GRACE_S = 60.0
_ASK_AGAIN_S = 2.0


@dataclass(frozen=True)
class World:
    """This process's rank, and host-side communication with the others."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    cpu_group: dist.ProcessGroup | None = None
    """gloo group for CPU objects; the watchdog enforces its timeout, not the backend."""
    checkpoint_group: dist.ProcessGroup | None = None
    """A second one for the thread that saves checkpoints, whose collectives have an order of their own."""
    watchdog: Watchdog | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the run's files."""
        return self.rank == 0

    @property
    def host(self) -> str:
        return socket.gethostname()

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's ``value``, on every rank."""
        with self._collective("a value from rank 0"):
            return self._broadcast(value, self.cpu_group)

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` on rank 0; return its value, or raise its ``Ending``, on every rank."""
        try:
            answer: Any = function() if self.is_main else None
        except Ending as ending:
            answer = ending
        answer = self.broadcast_object(answer)
        if isinstance(answer, Ending):
            raise answer
        return answer

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's ``value`` in the order of ranks on rank 0; an empty list on the others."""
        with self._collective("values to rank 0"):
            return self._gather(value, self.cpu_group)

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Every rank's ``value`` in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        with collective("values to all ranks"):
            dist.all_gather_object(boxes, value, group=self.cpu_group)
        return boxes

    def gather_objects_for_checkpoint(self, value: Any) -> list[Any]:
        """``gather_objects``, over the group of the thread that saves checkpoints."""
        return self._gather(value, self.checkpoint_group)

    def broadcast_object_for_checkpoint(self, value: Any) -> Any:
        """``broadcast_object``, over the group of the thread that saves checkpoints."""
        return self._broadcast(value, self.checkpoint_group)

    def _gather(self, value: Any, group: dist.ProcessGroup | None) -> list[Any]:
        if self.size == 1:
            return [value]
        boxes: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, boxes, dst=0, group=group)
        return boxes or []

    def _broadcast(self, value: Any, group: dist.ProcessGroup | None) -> Any:
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, group=group)
        return box[0]

    def _collective(self, name: str) -> AbstractContextManager[None]:
        return collective(name) if self.size > 1 else nullcontext()

    def barrier(self) -> None:
        """Return when every rank has entered."""
        if self.size > 1:
            with collective("a barrier"):
                dist.barrier(group=self.cpu_group)

    def raise_on_all_ranks(self, error: str | None) -> None:
        """If any rank has an ``error``, raise ``UserError`` on every rank with the first one.

        The message names the rank's host, unless every rank has an error.
        """
        said = self.all_gather_objects((error, self.host))
        rank = next((rank for rank, (message, _) in enumerate(said) if message), None)
        if rank is not None:
            message, host = said[rank]
            is_everywhere = all(message for message, _ in said)
            raise UserError(message if is_everywhere else f"rank {rank} on {host}: {message}")


def _choose_device(name: str, local_rank: int) -> torch.device:
    """The device for ``engine.device``, made torch's current one; raises ``UserError`` for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        # Only of this rank: another host may have a GPU.
        raise UserError("engine.device=cuda, but torch sees no GPU here: use engine.device=auto or cpu", one_rank=True)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK={local_rank} on a machine of {torch.cuda.device_count()} GPU(s): start one rank a GPU "
            "(torchrun --nproc-per-node), or use engine.device=cpu",
            one_rank=True,
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def has_bf16() -> bool:
    """Whether this machine's processor has bf16 instructions, by /proc/cpuinfo; true where there is none."""
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return True
    return any(name in flags for name in ("amx_bf16", "avx512_bf16", " bf16"))


def is_lost_peer(error: RuntimeError, size: int) -> bool:
    """Whether a collective of ``size`` ranks failed because a rank is gone (gloo has no error class of its own)."""
    if size == 1 or is_short_of_files(error):
        return False
    return isinstance(error, dist.DistBackendError) or "gloo" in str(error) or "Connection" in str(error)


def _wait_for_address(launched: launchers.LaunchedRank, timeout_s: float) -> None:
    """Wait until rank 0's host name resolves: that of a host that is still starting may not.

    Raises ``UserError`` on a time-out.
    """
    name, until = os.environ["MASTER_ADDR"], time.monotonic() + timeout_s
    here = f"rank {launched.rank} of {launched.size} (by {launched.by}) on {socket.gethostname()}"
    is_told = False
    while True:
        try:
            socket.getaddrinfo(name, None)
            return
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no host's name"
            if isinstance(error, UnicodeError) or time.monotonic() > until:
                raise UserError(
                    f"MASTER_ADDR={name}: {here} finds no address of rank 0's host ({why}): give a name that every "
                    "host of the run resolves, or its address",
                    one_rank=True,
                ) from error
            if not is_told:
                output.say(
                    f"glci: {here} finds no address of MASTER_ADDR={name} yet ({why}): asking for {timeout_s:.0f} s"
                )
            is_told = True
            time.sleep(_ASK_AGAIN_S)


def _init_error(error: RuntimeError, launched: launchers.LaunchedRank | None) -> Ending:
    """The error to end with if the process group could not be initialised."""
    said = str(error).strip().partition("\n")[0]
    rank, size = (launched.rank, launched.size) if launched is not None else (0, 1)
    here = f"rank {rank} of {size} on {socket.gethostname()}"
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    kind: type[Ending] = UserError
    if is_short_of_files(error):
        why = f"{here} cannot open the sockets that ranks talk by (Too many open files)"
    elif "Unable to find address" in said and "GLOO_SOCKET_IFNAME" in os.environ:
        why = (
            f"GLOO_SOCKET_IFNAME={os.environ['GLOO_SOCKET_IFNAME']}: {here} has no such network interface with an "
            "address: name one of those that `ip address` shows, or unset it"
        )
    elif launched is None or size == 1:
        kind, why = Fault, f"{here} cannot open the sockets that ranks talk by ({said}): mend its network"
    elif "EADDRINUSE" in str(error):
        why = (
            f"{where}, where the ranks meet, is another program's already: choose another port (MASTER_PORT=...), "
            "the same for all ranks"
        )
    else:
        kind = Fault
        why = (
            f"rank {rank} of {size} (by {launched.by}) did not meet the others at {where} "
            f"(MASTER_ADDR, MASTER_PORT; rank 0's host): {said}: the message of one that failed first says why; else "
            "look whether all were started, and reach that address"
        )
    return kind(why, one_rank=True)


def _local_ranks_and_cores(host: str, size: int, cpu_group: dist.ProcessGroup) -> tuple[int, int]:
    """The number of ranks on this host, and this rank's share of the cores that it may run on.

    Some launchers bind each rank to cores of its own, others none.
    """
    mine = os.sched_getaffinity(0)
    told: list[Any] = [None] * size
    dist.all_gather_object(told, (host, mine), group=cpu_group)
    here = [cores for name, cores in told if name == host]
    return len(here), int(sum(Fraction(1, sum(core in cores for cores in here)) for core in mine))


@contextmanager
def joined(config: EngineConfig) -> Iterator[World]:
    """Join the launcher's process group while the block lasts; raises ``UserError`` or ``Fault`` where that fails."""
    launched = launchers.set_torch_variables()
    local_rank = launched.local_rank if launched is not None else 0
    device = _choose_device(config.device, local_rank)
    # A dominating discriminator has gradients so small that their squares are denormal, which is a hundred times
    # slower on a CPU.
    torch.set_flush_denormal(True)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The watchdog ends a rank that waits longer than engine.timeout_s, and reports for whom. The backend's own time-out
    # is longer: it cannot report that.
    timeout = timedelta(seconds=config.timeout_s + _GRACE_S)
    try:
        if launched is None or launched.size == 1:
            dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
        else:
            _wait_for_address(launched, config.timeout_s)
            dist.init_process_group(backend, timeout=timeout)
        rank, size, host = dist.get_rank(), dist.get_world_size(), socket.gethostname()
        cpu_group, checkpoint_group = (dist.new_group(backend="gloo", timeout=timedelta(days=30)) for _ in range(2))
        local_size, cores = _local_ranks_and_cores(host, size, cpu_group)
    except RuntimeError as error:
        raise _init_error(error, launched) from error
    torch.set_num_threads(config.threads or max(1, cores))
    watchdog = Watchdog(rank=rank, size=size, host=host, timeout_s=config.timeout_s)
    try:
        world = World(rank, size, local_rank, local_size, device, cpu_group, checkpoint_group, watchdog)
        yield world
        # No rank closes its connections while another still needs them.
        world.barrier()
    finally:
        watchdog.close()
        dist.destroy_process_group()
