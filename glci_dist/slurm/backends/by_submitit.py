"""What backends have in common that submit by submitit."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glci_dist.slurm.backends.base import Allocation, JobHandle

PYTHON = f"{shlex.quote(sys.executable)} -m glci_dist.slurm.task"
"""The interpreter of a job: a signal that comes before the launcher is ready has to wait for it."""


def handles(jobs: Iterable[Any]) -> list[JobHandle]:
    """Those of submitit's jobs."""
    return [JobHandle(str(job.job_id), job.paths.stdout, job) for job in jobs]


def allocation(folder: Path, *, restart: int = 0) -> Allocation:
    """Of the job that this process is a task of."""
    from submitit import JobEnvironment

    # submitit's debug executor leaves it out.
    os.environ.setdefault("SUBMITIT_FOLDER", str(folder))
    environment = JobEnvironment()
    paths = environment.paths
    # What an earlier run of this job left would be taken for this one's.
    paths.result_pickle.unlink(missing_ok=True)
    return Allocation(environment.job_id, environment.hostnames, environment.node, restart, paths.submission_file)
