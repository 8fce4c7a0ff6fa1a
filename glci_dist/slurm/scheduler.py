"""SLURM's own programs, and what they answer. Nothing else in the project calls them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from glci_dist.errors import UserError

_PATIENCE_S = 60.0

ALIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "STOPPED")
"""States in which a job has not ended: it runs, or will."""


@dataclass(frozen=True)
class Queued:
    """A job as the controller has it."""

    state: str
    """``PENDING``, ``RUNNING``, ``COMPLETING``, ..."""
    reason: str
    """Why it waits."""
    nodes: str
    start: str
    """When it started, or is expected to."""


@dataclass(frozen=True)
class Ran:
    """One run of a job through the scheduler, as its accounting has it."""

    state: str
    nodes: str
    start: str
    end: str
    exit_code: str


def is_there() -> bool:
    """Whether this machine has SLURM's programs."""
    return shutil.which("squeue") is not None


def queued(job: str) -> Queued | None:
    """The job, if the controller has it still; raises ``UserError`` without SLURM, or without an answer."""
    answer = _ask(["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r|%N|%S"])
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise UserError(f"squeue: {(answer.stderr.strip().splitlines() or ['no answer'])[-1]}")
    lines = answer.stdout.splitlines()
    if answer.returncode or not lines:
        return None
    state, reason, nodes, start = lines[0].strip().split("|")
    return Queued(state, reason, nodes, start)


def history(job: str) -> list[Ran]:
    """Every run of the job through the scheduler, oldest first; empty where its accounting has forgotten it."""
    fields = "JobID,State,NodeList,Start,End,ExitCode"
    answer = _ask(["sacct", "-X", "-D", "-P", "-n", f"--jobs={job}", f"--format={fields}", "--starttime=1970-01-01"])
    found = []
    for line in answer.stdout.splitlines() if answer.returncode == 0 else []:
        name, state, nodes, start, end, code = line.split("|")
        if name == job:
            # As in "CANCELLED by 0".
            found.append(Ran(state.split()[0], nodes, start, end, code))
    return found


def refusal(script: Path) -> str | None:
    """Why the scheduler would not take the batch script; None: it would."""
    answer = _ask(["sbatch", "--test-only", str(script)])
    if answer.returncode == 0:
        return None
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("allocation failure: ") if lines else "sbatch --test-only gave no reason"


def expected_start(script: Path) -> str:
    """What the scheduler says of when and where the batch script would start."""
    answer = _ask(["sbatch", "--test-only", str(script)])
    return answer.stderr.strip().splitlines()[-1].removeprefix("sbatch: ") if answer.stderr.strip() else ""


def requeue(job: str) -> None:
    """Put a running job, perhaps that of this process, into the queue again."""
    _ask(["scontrol", "requeue", job], check=True)


def cancel(job: str) -> None:
    """Cancel a job that waits or runs."""
    _ask(["scancel", job], check=True)


def _ask(command: list[str], *, check: bool = False) -> subprocess.CompletedProcess[str]:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S)
    except FileNotFoundError:
        raise UserError(
            f"there is no {command[0]} on this machine: go to a login node of the cluster, try cluster.executor=local, "
            "or bring a cluster up here (make slurm-up)"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} gave no answer within {_PATIENCE_S:.0f} s: is the controller up?") from None
    if check and answer.returncode:
        said = (answer.stderr.strip() or answer.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{' '.join(command)}: {' '.join(said)}")
    return answer
