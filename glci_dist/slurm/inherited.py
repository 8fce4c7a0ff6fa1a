"""Which of the caller's variables reach the scheduler's programs and a job: those that say which cluster it is.

A shell inside an allocation or a container, or a user's profile, is full of variables by which Slurm's programs,
submitit, MPI and torch's launcher pass settings on to one another. Any of them would change what is submitted, or
what the programs print. A submission depends on its configuration alone, so they are left out, and named.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from glci_dist.config import ClusterConfig

COUNTS = ("SLURM_CONF", "SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_JWKS")
"""Which cluster it is, and who asks."""
_SECRET = ("SLURM_JWT", "SLURM_SACK_KEY", "SBATCH_EXPORT")
"""Whose values are not shown: the last may give a job variables of any kind."""
_PREFIXES = (
    *("SLURM", "_SLURM", "SPANK_", "_SPANK", "PYXIS_", "SUBMITIT_", "_SUBMITIT"),
    *("SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SACCTMGR_", "SCONTROL_", "SCANCEL_", "SSTAT_"),
    *("PET_", "TORCHELASTIC_", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "PMI_", "PMIX_", "PALS_", "MV2_COMM_WORLD_"),
)
_NAMES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "CROSS_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "LOCAL_SIZE", "CROSS_SIZE"),
    *("ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
"""Of the machine that it is submitted from; the job's are the scheduler's to choose."""
_LIBRARIES = ("NCCL_", "GLOO_", "OMP_", "TORCH_", "PYTORCH_", "MKL_", "UCX_", "FI_")
"""Settings of libraries, which a job inherits as any program does."""
_KEYS = {
    "SBATCH_PARTITION": "cluster.partition",
    "SBATCH_ACCOUNT": "cluster.account",
    "SBATCH_QOS": "cluster.qos",
    "SBATCH_CONSTRAINT": "cluster.constraint",
    "SBATCH_TIMELIMIT": "cluster.time_min",
    "SBATCH_MEM_PER_NODE": "cluster.memory_gb",
    "SBATCH_RESERVATION": "cluster.sbatch.reservation",
    "SBATCH_GRES": "cluster.sbatch.gres",
    "SBATCH_HINT": "cluster.sbatch.hint",
    "SBATCH_EXCLUSIVE": "cluster.sbatch.exclusive",
    "SBATCH_WCKEY": "cluster.sbatch.wckey",
    "SBATCH_MEM_PER_CPU": "cluster.sbatch.mem-per-cpu",
    "SBATCH_MEM_PER_GPU": "cluster.sbatch.mem-per-gpu",
    "SBATCH_EXPORT": "cluster.sbatch.export",
    "SLURM_CLUSTERS": "SLURM_CONF",
    "SBATCH_CLUSTERS": "SLURM_CONF",
    "CUDA_VISIBLE_DEVICES": "cluster.gpus",
}
"""Where what a variable asks for is asked for here."""
_SHOWN = 12


def reduced(environment: Mapping[str, str], left_out: Collection[str] = DEVICES) -> dict[str, str]:
    """The environment without what would change a submission unseen, and without ``left_out``."""
    return {name: value for name, value in environment.items() if not _is_left_out(name, left_out)}


@contextmanager
def applied(left_out: Collection[str] = DEVICES) -> Iterator[None]:
    """Have this process and those that it starts be without these variables for a while."""
    before = dict(os.environ)
    for name in set(before) - set(reduced(before, left_out)):
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def lines(
    cluster: ClusterConfig,
    environment: Mapping[str, str],
    *,
    counts: Collection[str] = COUNTS,
    left_out: Collection[str] = DEVICES,
) -> Iterator[str]:
    """What is to be said of the caller's environment: which variables count, and which are left out."""
    there = [name for name in counts if environment.get(name)]
    told = [name if name in _SECRET else f"{name}={environment[name]}" for name in there]
    if told:
        yield f"{', '.join(told)} of the environment counts: which cluster it is"
    out = sorted(name for name in environment if _is_left_out(name, left_out))
    if out:
        # First those that are asked for elsewhere.
        out.sort(key=lambda name: name not in _KEYS)
        told = [_told(name, environment[name]) for name in out[:_SHOWN]]
        more = f" and {len(out) - _SHOWN} more" if len(out) > _SHOWN else ""
        yield f"left out of the environment, the configuration alone counts: {', '.join(told)}{more}"
    given = [name for name in sorted(environment) if name.startswith(_LIBRARIES) and name not in cluster.environment]
    if given:
        yield f"inherited by the job (cluster.environment fixes it): {', '.join(given)}"


def _told(name: str, value: str) -> str:
    shown = name if name in _SECRET or name not in _KEYS else f"{name}={value}"
    return f"{shown} (say {_KEYS[name]})" if name in _KEYS else shown


def _is_left_out(name: str, further: Collection[str]) -> bool:
    if name in COUNTS:
        return False
    return name in _NAMES or name.startswith(_PREFIXES) or name in further
