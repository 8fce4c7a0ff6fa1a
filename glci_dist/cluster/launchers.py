"""Rank and world size of this process, from its launcher's environment variables.

torchrun, DeepSpeed's launcher and `glci submit`'s agent set torch's variables (RANK, WORLD_SIZE, ...); srun and mpirun
set their own, which ``set_torch_variables`` translates, so that everything else reads torch's.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from glci_dist.errors import UserError

_WAY_OUT = "start the ranks with torchrun or `glci submit`"
_BARE = "RANK and WORLD_SIZE"
_TORCHS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_USUAL_PORT = 29500
_FIRST_PORT, _PORTS = 20000, 9000
"""Below the system's ephemeral ports, and below those of ``cluster.reserved_port``."""
_SPECIAL_STEPS = 0xFFFFFFF0
"""First of the numbers that SLURM gives to its own steps: the batch script, the shell of salloc."""


@dataclass(frozen=True)
class LaunchedRank:
    """This process as one rank of a launcher's world."""

    by: str
    """The launcher's name, for messages."""
    rank: int
    size: int
    local_rank: int = 0
    local_size: int | None = None
    """Ranks on this host; None: unknown."""
    address: str = ""
    """Of rank 0's host; empty: unknown."""
    port: int | None = None

    @property
    def is_one_of_many(self) -> bool:
        """Whether other processes run the same command; RANK and WORLD_SIZE alone may be a machine's own variables."""
        return self.size > 1 and self.by != _BARE


@dataclass(frozen=True)
class _Family:
    """The variables of one kind of launcher."""

    by: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    job: tuple[str, ...] = field(default=(), kw_only=True)
    """Variables that identify one start of the launcher."""


_MPI = (
    _Family(
        "mpirun (Open MPI)",
        *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        job=("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    ),
    _Family(
        "mpirun (MVAPICH)",
        *("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
        *("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ),
    _Family("mpirun (MPICH, Intel MPI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


def detect() -> LaunchedRank | None:
    """This process's rank in its launcher's world; None: it has no launcher.

    An empty variable counts as unset. Raises ``UserError`` where the variables are incomplete or contradictory.
    """
    variables = {name: text for name, text in os.environ.items() if text}
    other = _by_mpi_or_srun(variables)
    has_rank, has_size = "RANK" in variables, "WORLD_SIZE" in variables
    if not has_rank and not has_size:
        return other
    if other is None and not (has_rank and has_size):
        there, gone = ("RANK", "WORLD_SIZE") if has_rank else ("WORLD_SIZE", "RANK")
        raise UserError(f"{there}={variables[there]} is set, but {gone} is not: {_WAY_OUT}, or unset {there}")
    rank = _number(variables, "RANK", other.rank if other else 0)
    size = _number(variables, "WORLD_SIZE", other.size if other else 1)
    _check_rank(rank, size, "RANK", "WORLD_SIZE")
    # The other launcher may have started torch's agents, one per node.
    if other is not None and "TORCHELASTIC_RUN_ID" not in variables and (rank, size) != (other.rank, other.size):
        raise UserError(
            f"RANK and WORLD_SIZE say rank {rank} of {size}, but {other.by} says rank {other.rank} of {other.size}: "
            "unset RANK and WORLD_SIZE, or start the ranks by one launcher alone"
        )
    return _by_torch(variables, rank, size, other)


def set_torch_variables() -> LaunchedRank | None:
    """Set torch's variables to what ``detect`` returns; raises ``UserError`` also where rank 0's address is unknown."""
    found = detect()
    if found is not None and found.size > 1 and not (found.address and found.port):
        # Other ranks may know it.
        raise UserError(_where_is_rank_0(found), one_rank=True)
    for name in _TORCHS:
        if not os.environ.get(name):
            os.environ.pop(name, None)
    if found is None:
        return None
    told = {
        # c10d warns of every connection from an address without a DNS name, as between a cluster's nodes.
        "TORCH_CPP_LOG_LEVEL": "ERROR" if found.by == "srun" else None,
        "RANK": found.rank,
        "WORLD_SIZE": found.size,
        "LOCAL_RANK": found.local_rank,
        "LOCAL_WORLD_SIZE": found.local_size,
        "MASTER_ADDR": found.address or None,
        "MASTER_PORT": found.port,
    }
    for name, value in told.items():
        if value is not None:
            os.environ.setdefault(name, str(value))
    return found


def is_silent() -> bool:
    """Whether rank 0 prints what this process would print: it is another rank of a launcher's world.

    False where the variables are contradictory, incomplete, or perhaps the machine's own: then every process prints.
    """
    try:
        found = detect()
    except UserError:
        return False
    return found is not None and found.is_one_of_many and found.rank != 0


def _by_torch(variables: Mapping[str, str], rank: int, size: int, other: LaunchedRank | None) -> LaunchedRank:
    found = other or LaunchedRank("deepspeed" if "CROSS_RANK" in variables else _BARE, rank, size)
    local_rank, local_size = _number(variables, "LOCAL_RANK", found.local_rank), found.local_size
    # LOCAL_SIZE is what DeepSpeed's launcher sets.
    name = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in variables), None)
    if name is not None:
        local_size = _number(variables, name)
        _check_rank(local_rank, local_size, "LOCAL_RANK", name)
    return LaunchedRank(
        "torchrun" if "TORCHELASTIC_RUN_ID" in variables else found.by,
        rank,
        size,
        local_rank,
        local_size,
        variables.get("MASTER_ADDR", found.address),
        port if (port := _port(variables)) is not None else found.port,
    )


def _by_mpi_or_srun(variables: Mapping[str, str]) -> LaunchedRank | None:
    """The rank by mpirun's or srun's variables; None where there are none, or for a single process."""
    by_mpi = next((found for family in _MPI if (found := _by_mpi(family, variables)) is not None), None)
    by_srun = _by_srun(variables)
    # srun sets PMI's variables too, and more; mpirun may start its processes with srun.
    is_same = by_mpi and by_srun and (by_srun.rank, by_srun.size) == (by_mpi.rank, by_mpi.size)
    found = by_srun if by_mpi is None or is_same else by_mpi
    if found is None and "RANK" not in variables and variables.get("PMIX_RANK", "0") != "0":
        raise UserError(f"PMIX_RANK={variables['PMIX_RANK']} is set, but nothing says of how many: {_WAY_OUT}")
    return found


def _by_mpi(family: _Family, variables: Mapping[str, str]) -> LaunchedRank | None:
    if family.rank not in variables and family.size not in variables:
        return None
    for name, other in ((family.rank, family.size), (family.size, family.rank)):
        if name not in variables:
            raise UserError(f"{other}={variables[other]} is set, but {name} is not: {_WAY_OUT}")
    rank, size = _number(variables, family.rank), _number(variables, family.size)
    _check_rank(rank, size, family.rank, family.size)
    if size == 1:
        return None
    local_rank = _number(variables, family.local_rank, 0)
    local_size = _number(variables, family.local_size) if family.local_size in variables else None
    address, port = variables.get("MASTER_ADDR", ""), _port(variables)
    if local_size == size and not address:
        job = next((variables[name] for name in family.job if name in variables), None) or _launcher_of(family.rank)
        address, port = "127.0.0.1", port or _port_of(job)
    return LaunchedRank(family.by, rank, size, local_rank, local_size, address, port or _USUAL_PORT)


def _by_srun(variables: Mapping[str, str]) -> LaunchedRank | None:
    """A task of a job step with several tasks; a batch script, or salloc's shell, is none."""
    step = variables.get("SLURM_STEP_ID", "")
    if "SLURM_PROCID" not in variables or not step.isdecimal() or int(step) >= _SPECIAL_STEPS:
        return None
    size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in variables else "SLURM_NTASKS"
    if size_name not in variables or (size := _number(variables, size_name)) == 1:
        return None
    rank = _number(variables, "SLURM_PROCID")
    _check_rank(rank, size, "SLURM_PROCID", size_name)
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_NODELIST", "")
    is_one_host = (variables.get("SLURM_STEP_NUM_NODES") or variables.get("SLURM_NNODES")) == "1"
    job = f"{variables.get('SLURM_JOB_ID', '')}.{step}"
    return LaunchedRank(
        "srun",
        rank,
        size,
        _number(variables, "SLURM_LOCALID", 0),
        size if is_one_host else _tasks_here(variables),
        variables.get("MASTER_ADDR") or ("127.0.0.1" if is_one_host else first_host(nodes)),
        _port(variables) or _port_of(job),
    )


def first_host(nodes: str) -> str:
    """The first name of a SLURM node list: ``n01`` of ``n[01-03,7],m4``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group() if first else "")


def _tasks_here(variables: Mapping[str, str]) -> int | None:
    """Tasks on this node, from a list such as ``2(x3),1`` and the node's index in it."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", variables.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = variables.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def _launcher_of(variable: str) -> str:
    """The process id of the launcher that set ``variable``: the same for all ranks of this host."""
    process = os.getpid()
    while process > 1:
        folder = Path(f"/proc/{process}")
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            if not any(each.startswith(f"{variable}=".encode()) for each in variables):
                break
            process = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            # Another user's process is no rank.
            break
    return str(process)


def _where_is_rank_0(found: LaunchedRank) -> str:
    asked = "MASTER_PORT" if found.address else "MASTER_ADDR"
    family = next((family for family in _MPI if family.by == found.by), None)
    if family is not None:
        many = f"{found.by} started {found.size} ranks"
        unknown = f"{many}, {family.local_size} does not say how many of them on this host"
        where = f"{many} on several hosts" if found.local_size else unknown
        return (
            f"{where}, and {asked} does not say where rank 0 is: set it for all ranks (mpirun -x {asked}=HOST, or "
            f"-genv {asked} HOST), or {_WAY_OUT}"
        )
    said = "is 0" if found.port == 0 and found.address else "is not set"
    return f"rank {found.rank} of {found.size} (by {found.by}) cannot find rank 0: {asked} {said}: {_WAY_OUT}"


def _check_rank(rank: int, size: int, rank_name: str, size_name: str) -> None:
    if size < 1:
        raise UserError(f"{size_name}={size} is no number of ranks: {_WAY_OUT}, or unset it")
    if not 0 <= rank < size:
        raise UserError(f"{rank_name}={rank} is no rank of {size_name}={size}, which are 0 to {size - 1}: {_WAY_OUT}")


def _port(variables: Mapping[str, str]) -> int | None:
    if not variables.get("MASTER_PORT"):
        return None
    port = _number(variables, "MASTER_PORT")
    # Port 0 (any free one) is allowed here: it works for a single rank.
    if not 0 <= port < 2**16:
        raise UserError(f"MASTER_PORT={port} is no port: choose a free one from 1024 to 65535")
    return port


def _port_of(job: str) -> int:
    """A port that is equal on all ranks of one start, and most likely differs between starts."""
    return _FIRST_PORT + zlib.crc32(f"{os.getuid()}/{job}".encode()) % _PORTS


def _number(variables: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    """The number in a variable; ``otherwise``, if given, where it is unset."""
    if otherwise is not None and name not in variables:
        return otherwise
    text = variables[name]
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text} is no whole number: {_WAY_OUT}, or unset it") from None
