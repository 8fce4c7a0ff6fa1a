"""submitit's private parts, which are used here alone; tests/test_private_parts.py says what needs each."""

from __future__ import annotations

from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import SlurmExecutor, SlurmJob, SlurmJobEnvironment

__all__ = ["DelayedSubmission", "JobPaths", "SlurmExecutor", "SlurmJob", "SlurmJobEnvironment", "script", "tasks"]


def script(executor: SlurmExecutor) -> str:
    """The batch script of a job."""
    return str(executor._make_submission_file_text(executor._submitit_command_str, "explained"))


def tasks(executor: SlurmExecutor) -> list[int]:
    """The numbers of a job's tasks."""
    return list(range(executor._num_tasks()))
