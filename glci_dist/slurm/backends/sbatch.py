"""submitit's executor for SLURM, with what a run asks for, and its batch script."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glci_dist.errors import UserError
from glci_dist.slurm import inherited, scheduler
from glci_dist.slurm.backends.base import JobRequest
from glci_dist.slurm.backends.by_submitit import PYTHON
from glci_dist.slurm.launch import Launch

_KILLED = 128
"""Exit codes of srun from here on: a process of the step was killed by a signal."""


def submit(launches: Sequence[Launch], request: JobRequest) -> list[Any]:
    """submitit's job for each launch; several are one array. Raises ``UserError``.

    sbatch is called by ``scheduler``, and not by submitit: it knows what to do without an answer.
    """
    executor = _executor(request)
    from glci_dist.slurm.submitit_parts import DelayedSubmission, JobPaths, SlurmJob, script, tasks

    folder = JobPaths.get_first_id_independent_folder(executor.folder)
    folder.mkdir(parents=True, exist_ok=True)
    pickles = []
    for launch in launches:
        delayed = DelayedSubmission(launch)
        delayed.set_timeout(executor.parameters.get("time", 5), executor.max_num_timeout)
        pickles.append(folder / f"{uuid.uuid4().hex}.pkl")
        delayed.dump(pickles[-1])
    if len(launches) > 1:
        executor.parameters["map_count"] = len(launches)
    batch_script = folder / f".submission_file_{uuid.uuid4().hex}.sh"
    batch_script.write_text(script(executor), encoding="utf-8")
    try:
        number = scheduler.submit(batch_script)
    except UserError:
        for path in (*pickles, batch_script):
            path.unlink(missing_ok=True)
        raise
    numbers = tasks(executor)
    first: Any = SlurmJob(folder=executor.folder, job_id=number, tasks=numbers)
    first.paths.move_temporary_file(batch_script, "submission_file", keep_as_symlink=True)
    names = [number] if len(launches) == 1 else [f"{number}_{place}" for place in range(len(launches))]
    jobs: list[Any] = [SlurmJob(folder=executor.folder, job_id=name, tasks=numbers) for name in names]
    for job, path in zip(jobs, pickles, strict=True):
        job.paths.move_temporary_file(path, "submitted_pickle")
    return jobs


@contextmanager
def script(request: JobRequest) -> Iterator[Path]:
    """The batch script that would be submitted, for as long as it is asked about; ``UserError`` without SLURM."""
    executor = _executor(request)
    from glci_dist.slurm import submitit_parts

    with tempfile.TemporaryDirectory(prefix="glci-submit-") as folder:
        path = Path(folder) / "job.sh"
        path.write_text(submitit_parts.script(executor), encoding="utf-8")
        yield path


def _executor(request: JobRequest) -> Any:
    # submitit reads some of them when it is imported.
    with inherited.applied():
        from glci_dist.slurm.submitit_parts import SlurmExecutor

    try:
        executor = SlurmExecutor(folder=request.folder, python=PYTHON)
    except RuntimeError as error:
        raise UserError(
            f"cluster.executor={request.cluster.executor}: {str(error).rstrip('?.')}: go to a login node, try "
            "cluster.executor=local, or bring a cluster up here (make slurm-up)"
        ) from error
    executor.update_parameters(**_parameters(request))
    return executor


def _parameters(request: JobRequest) -> dict[str, Any]:
    """What submitit makes the batch script of."""
    cluster, code = request.cluster, shlex.quote(str(request.code))
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
        # Safe: python -m would look into the job's folder first, which is where it was submitted, a checkout perhaps.
        "setup": [*_SETUP, f"export PYTHONSAFEPATH=1 PYTHONPATH={code}${{PYTHONPATH:+:$PYTHONPATH}}", *cluster.setup],
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


def _teardown(folder: Path) -> list[str]:
    """What the batch script does after srun: a launcher that was killed could not have the job queued again."""
    command = f"{shlex.quote(sys.executable)} -m glci_dist.slurm.aftermath {shlex.quote(os.path.abspath(folder))}"
    return ["status=$?", f"[ $status -lt {_KILLED} ] || {command} $status", "exit $status"]
