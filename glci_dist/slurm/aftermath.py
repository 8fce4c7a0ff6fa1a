"""What the batch script of a job does after a launcher was killed: ``python -m glci_dist.slurm.aftermath FOLDER CODE``.

A launcher that is killed (by the kernel for want of memory, by hand) takes the others with it, and the job with them,
and none of them is left to say why, or to have it queued again. The batch script is, on the first node. To the run it
is as if a node were lost: the job is queued again, as often as any job may be.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from glci_dist.errors import Fault
from glci_dist.slurm import notes
from glci_dist.slurm.requeue import JobStart

_TAIL = 262_144
"""Bytes of the output that are looked through."""


def main(folder: Path, code: int) -> None:
    from glci_dist.slurm.submitit_parts import DelayedSubmission, JobPaths, SlurmJobEnvironment

    environment = SlurmJobEnvironment()
    job, hosts = environment.job_id, list(environment.hostnames)
    paths = JobPaths(folder, job_id=job)
    if not paths.submitted_pickle.exists():
        return
    launch: Any = DelayedSubmission.load(paths.submitted_pickle).function
    start = JobStart(launch.run, job, int(os.environ.get("SLURM_RESTART_COUNT", "0")), hosts[0], launch.cluster)
    said = notes.verdicts(launch.run, job, start.restart) or notes.asked_again(launch.run, job, start.restart)[0]
    # A launcher has decided, or the scheduler.
    if said or start.is_taken_away(within_s=0):
        return
    why = f"a launcher was killed: {first_killed(paths.stdout, code)}"
    try:
        start.queue_again(why, asks=True, cause=why)
    except Fault as fault:
        start.say(str(fault))


def first_killed(output: Path, code: int) -> str:
    """Which process of this start of the job was killed first, and how, as srun says it in the job's output."""
    text = ""
    with suppress(OSError), output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - _TAIL))
        text = file.read().decode(errors="replace")
    start = text.rpartition(" starts, restart ")[2]
    found = re.search(r"srun: error: ([^\s:]+): tasks? [^\s:]+: (.+)", start)
    if found:
        return f"{found[1]} ({found[2].strip()})"
    return f"srun ended with {code} (signal {code - 128})"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
