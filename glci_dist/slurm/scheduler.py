"""SLURM's own programs, and what they answer. Nothing else in the project calls them."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from glci_dist.errors import UserError

_PATIENCE_S = 60.0
_SKEW_S = 3600.0
"""By which the clocks of this machine and of the controller may differ at most."""

_ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
"""States in which a job has ended; in any other (SIGNALING, STAGE_OUT, REQUEUED, ...) it runs, or will."""

PREEMPTED = "its job is preempted"
_TAKEN_AWAY = ("PENDING", "COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
"""States in which a job that ran is to run no longer, for now."""


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
    restarts: int
    """How often it was queued again."""

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def is_taken_away(self) -> bool:
        """Whether its processes are to end, where there are some left."""
        return self.has_ended or self.state in _TAKEN_AWAY


@dataclass(frozen=True)
class Ran:
    """One run of a job through the scheduler, as its accounting has it."""

    state: str
    nodes: str
    start: str
    """As SLURM writes it: local time; ``None`` or ``Unknown`` where there is none."""
    end: str
    exit_code: str

    @property
    def began(self) -> float:
        """Seconds since 1970; infinite: it did not."""
        return _seconds(self.start)

    @property
    def ended(self) -> float:
        """Seconds since 1970; infinite: it did not."""
        return _seconds(self.end)


def is_there() -> bool:
    """Whether this machine has SLURM's programs."""
    return shutil.which("squeue") is not None


def queued(job: str) -> Queued | None:
    """The job, if the controller has it still; raises ``UserError`` without SLURM, or without an answer."""
    fields = "State:|,Reason:|,NodeList:|,StartTime:|,RestartCnt:|"
    answer = _ask(["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--Format={fields}"])
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise UserError(f"squeue: {(answer.stderr.strip().splitlines() or ['no answer'])[-1]}")
    lines = answer.stdout.splitlines()
    if answer.returncode or not lines:
        return None
    state, reason, nodes, start, restarts = (field.strip() for field in lines[0].split("|")[:5])
    return Queued(state, reason, nodes, start, int(restarts))


def history(job: str, *, since: float) -> list[Ran]:
    """Every run of the job through the scheduler, oldest first; empty where its accounting has forgotten it.

    ``since``: when it was submitted, seconds since 1970; clusters bound how much time may be asked for.
    """
    fields = "JobID,State,NodeList,Start,End,ExitCode"
    start = datetime.fromtimestamp(since - _SKEW_S).isoformat(timespec="seconds")
    answer = _ask(["sacct", "-X", "-D", "-P", "-n", f"--jobs={job}", f"--format={fields}", f"--starttime={start}"])
    found = []
    for line in answer.stdout.splitlines() if answer.returncode == 0 else []:
        name, state, nodes, start, end, code = line.split("|")
        if name == job:
            # As in "CANCELLED by 0".
            found.append(Ran(state.split()[0], nodes, start, end, code))
    return found


def warning(job: str, *, lead_s: int) -> str:
    """Why the scheduler warns a running job by a signal; ``lead_s``: how long before its time limit it should."""
    # It looks at time limits twice a minute, and warns when the next look would be too late.
    fields = "PreemptTime:.30,TimeLeft:.30"
    answer = _ask(["squeue", "--noheader", f"--jobs={job}", f"--Format={fields}"])
    preempted, left = ([*answer.stdout.split(), "", ""])[:2]
    if preempted not in ("", "N/A", "None"):
        return PREEMPTED
    if left.count(":") == 1 and int(left.split(":")[0]) * 60 + int(left.split(":")[1]) <= lead_s + 60:
        return "its job's time limit comes near"
    return ""


def lost_nodes(ran: Ran) -> list[str]:
    """Nodes of a job's run that went down while it ran, as far as the accounting knows."""
    asked = ["sacctmgr", "-n", "-P", "show", "event", f"nodes={ran.nodes}", f"start={ran.start}"]
    answer = _ask([*asked, "format=nodename,timestart,state"])
    found = []
    for line in answer.stdout.splitlines() if answer.returncode == 0 else []:
        node, start, state = line.split("|")
        # Both are local times in ISO's format, which sort as text.
        if state.startswith("DOWN") and ran.start <= start <= ran.end and node not in found:
            found.append(node)
    return found


def refusal(script: Path, *, exclude: str = "") -> str | None:
    """Why the scheduler would not take the batch script, without some nodes perhaps; None: it would."""
    answer = _ask(["sbatch", "--test-only", *([f"--exclude={exclude}"] if exclude else []), str(script)])
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
    _ask(["scontrol", "requeue", job], check=True, deaf=True)


def exclude(job: str, nodes: str) -> None:
    """Have a job that waits in the queue not start on some nodes. Raises ``UserError`` if it runs."""
    _ask(["scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"], check=True, deaf=True)


def cancel(job: str) -> None:
    """Cancel a job that waits or runs."""
    _ask(["scancel", job], check=True)


def _ask(command: list[str], *, check: bool = False, deaf: bool = False) -> subprocess.CompletedProcess[str]:
    """The program's answer. ``deaf``: it is called from within the job that is being ended, and has to get through."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, preexec_fn=_be_deaf if deaf else None
        )
    except FileNotFoundError:
        raise UserError(
            f"there is no {command[0]} on this machine: go to a login node of the cluster, try cluster.executor=local, "
            "or bring a cluster up here (make slurm-up)"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} gave no answer within {_PATIENCE_S:.0f} s: is the controller up?") from None
    if answer.returncode and "Could not establish a configuration source" in answer.stderr:
        raise UserError(
            "SLURM's programs find no configuration on this machine: go to a login node, or say where it is (for the "
            "cluster in a box: export SLURM_CONF=/var/lib/glci-slurm/slurm.conf)"
        )
    if check and answer.returncode:
        said = (answer.stderr.strip() or answer.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{' '.join(command)}: {' '.join(said)}")
    return answer


def _seconds(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return math.inf


def _be_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
