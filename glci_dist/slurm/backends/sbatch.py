"""submitit's executor for SLURM, with what a run asks for, and its batch script."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glci_dist.errors import UserError
from glci_dist.slurm import inherited, scheduler
from glci_dist.slurm.backends.base import JobRequest
from glci_dist.slurm.backends.by_submitit import PYTHON

if TYPE_CHECKING:
    from glci_dist.slurm.launch import Launch

_KILLED = 128
"""Exit codes of srun from here on: a process of the step was killed by a signal."""


class SlurmExecutor:
    """submitit's, but sbatch is called by ``scheduler``, which knows what to do without its answer."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def submit(self, launches: Sequence[Launch]) -> list[Any]:
        """submitit's job for each launch; several are one array."""
        from glci_dist.slurm.submitit_parts import DelayedSubmission, JobPaths, SlurmJob, tasks

        inner = self._inner
        folder = JobPaths.get_first_id_independent_folder(inner.folder)
        folder.mkdir(parents=True, exist_ok=True)
        pickles = []
        for launch in launches:
            delayed = DelayedSubmission(launch)
            delayed.set_timeout(inner.parameters.get("time", 5), inner.max_num_timeout)
            pickles.append(folder / f"{uuid.uuid4().hex}.pkl")
            delayed.dump(pickles[-1])
        if len(launches) > 1:
            inner.parameters["map_count"] = len(launches)
        script = folder / f".submission_file_{uuid.uuid4().hex}.sh"
        script.write_text(self.script(), encoding="utf-8")
        try:
            number = scheduler.submit(script)
        except UserError:
            for path in (*pickles, script):
                path.unlink(missing_ok=True)
            raise
        numbers = tasks(inner)
        first: Any = SlurmJob(folder=inner.folder, job_id=number, tasks=numbers)
        first.paths.move_temporary_file(script, "submission_file", keep_as_symlink=True)
        names = [number] if len(launches) == 1 else [f"{number}_{place}" for place in range(len(launches))]
        jobs: list[Any] = [SlurmJob(folder=inner.folder, job_id=name, tasks=numbers) for name in names]
        for job, path in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(path, "submitted_pickle")
        return jobs

    def script(self) -> str:
        """The batch script."""
        from glci_dist.slurm.submitit_parts import script

        return script(self._inner)


def make(request: JobRequest) -> SlurmExecutor:
    """The executor of a job; raises ``UserError`` where there is no SLURM."""
    # submitit reads some of them when it is imported.
    with inherited.applied():
        from glci_dist.slurm.submitit_parts import SlurmExecutor as Inner

    try:
        inner = Inner(folder=request.folder, python=PYTHON)
    except RuntimeError as error:
        raise UserError(
            f"cluster.executor={request.cluster.executor}: {str(error).rstrip('?.')}: go to a login node, try "
            "cluster.executor=local, or bring a cluster up here (make slurm-up)"
        ) from error
    inner.update_parameters(**_parameters(request))
    return SlurmExecutor(inner)


def _parameters(request: JobRequest) -> dict[str, Any]:
    """What submitit makes the batch script of."""
    cluster = request.cluster
    further: dict[str, Any] = {"signal": f"USR2@{cluster.signal_lead_s}"}
    if cluster.min_nodes and cluster.min_nodes < cluster.nodes:
        further["nodes"] = f"{cluster.min_nodes}-{cluster.nodes}"
    for key, text in cluster.sbatch.items():
        option = key.lstrip("-").replace("_", "-")
        if text is None or text.lower() == "false":
            further.pop(option, None)
        else:
            # What has no value of its own, such as exclusive, is on.
            further[option] = True if text.lower() == "true" else text
    further["requeue"] = True
    # srun does not take this from the request.
    cpus = [f"--cpus-per-task={cluster.cpus}"] if cluster.cpus else []
    options = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "gpus_per_node": cluster.gpus,
        "cpus_per_task": cluster.cpus,
        "mem": f"{round(cluster.memory_gb * 1024)}MB" if cluster.memory_gb else "",
    }
    return {
        **{key: value for key, value in options.items() if value},
        "job_name": request.name,
        "time": cluster.time_min,
        "nodes": cluster.nodes,
        "signal_delay_s": cluster.signal_lead_s,
        "setup": [*_SETUP, _path(request.code), *cluster.setup],
        "teardown": _teardown(request.folder),
        # One task a node here, not in the request: with it the scheduler would give a range of nodes its least.
        # Tasks that are not needed end early, and are no reason to end the others, whatever the cluster's WaitTime.
        "srun_args": ["--ntasks-per-node=1", "--kill-on-bad-exit=1", "--wait=0", *cpus],
        "stderr_to_stdout": True,
        # submitit would give one of its own.
        "wckey": None,
        "additional_parameters": further,
    }


_SETUP = [
    # So that srun passes the path on, whatever sbatch's --export was.
    "unset SLURM_EXPORT_ENV",
    'echo "glci: job $SLURM_JOB_ID starts, restart ${SLURM_RESTART_COUNT:-0}: $SLURM_JOB_NODELIST"',
]


def _path(code: Path) -> str:
    # Safe: python -m would look into the job's folder first, which is where it was submitted, a checkout perhaps.
    return f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"


def _teardown(folder: Path) -> list[str]:
    """What the batch script does after srun: a launcher that was killed could not have the job queued again."""
    command = f"{shlex.quote(sys.executable)} -m glci_dist.slurm.aftermath {shlex.quote(os.path.abspath(folder))}"
    return ["status=$?", f"[ $status -lt {_KILLED} ] || {command} $status", "exit $status"]
