"""What a shell inside an allocation leaves in the environment changes no submission, and is named."""

from __future__ import annotations

import os

import pytest

from glci_dist import compose
from glci_dist.slurm import inherited
from glci_dist.slurm.backends.choice import backend

CLUSTER = compose.load(["data.shards=shards/train", "name=run", "cluster=box"]).cluster


@pytest.mark.parametrize(
    "name",
    [
        *(
            "SLURM_NTASKS",
            "SLURM_MEM_PER_CPU",
            "SLURM_JOB_ID",
            "SLURM_CLUSTERS",
            "SLURM_TIME_FORMAT",
            "SLURMD_NODENAME",
        ),
        *("SBATCH_ACCOUNT", "SALLOC_PARTITION", "SRUN_CPUS_PER_TASK", "SQUEUE_FORMAT", "SINFO_FORMAT", "SACCT_FORMAT"),
        *("SCONTROL_ALL", "SCANCEL_STATE", "SUBMITIT_EXECUTOR", "SUBMITIT_PREEMPT_SIGNAL", "_SLURM_SPANK_OPTION_x"),
        *("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PET_NNODES", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    ],
)
def test_what_slurm_submitit_and_launchers_read_is_left_out(name: str) -> None:
    assert inherited.reduced({name: "1", "HOME": "/root"}) == {"HOME": "/root"}


@pytest.mark.parametrize("name", ["SLURM_CONF", "SLURM_JWT", "PATH", "NCCL_DEBUG", "OMPI_MCA_btl", "RANKING"])
def test_what_says_which_cluster_it_is_and_what_is_the_users_stays(name: str) -> None:
    assert inherited.reduced({name: "1"}) == {name: "1"}


def test_the_machines_own_gpus_count_where_the_job_runs_on_it() -> None:
    there = {"CUDA_VISIBLE_DEVICES": "2"}
    assert inherited.reduced(there, backend("slurm").left_out) == {}
    assert inherited.reduced(there, backend("local").left_out) == there


def test_what_counts_and_what_does_not_is_said_and_no_secret_is() -> None:
    told = list(
        inherited.lines(
            CLUSTER,
            {
                "SLURM_CONF": "/etc/slurm.conf",
                "SLURM_JWT": "hush",
                "SBATCH_ACCOUNT": "us",
                "SLURM_NTASKS": "1",
                "OMP_NUM_THREADS": "4",
                "NCCL_DEBUG": "INFO",
                "HOME": "/root",
            },
        )
    )
    assert told == [
        "SLURM_CONF=/etc/slurm.conf, SLURM_JWT of the environment counts: which cluster it is",
        "left out of the environment, the configuration alone counts: SBATCH_ACCOUNT=us (say cluster.account), "
        "SLURM_NTASKS",
        # OMP_NUM_THREADS stands in the cluster's configuration.
        "inherited by the job (cluster.environment fixes it): NCCL_DEBUG",
    ]
    assert list(inherited.lines(CLUSTER, {"HOME": "/root"})) == []


def test_the_environment_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    before = dict(os.environ)
    with inherited.applied():
        assert "SLURM_NTASKS" not in os.environ
        os.environ["RANK"] = "1"
    assert dict(os.environ) == before
