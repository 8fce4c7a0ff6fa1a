"""SLURM's own programs, and what they answer: a ``Scheduler``. Nothing else in the project calls them."""

from __future__ import annotations

import getpass
import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from glci_dist.errors import UserError
from glci_dist.slurm.asking import Silence, ask, ask_once, last_line, silent, wait
from glci_dist.slurm.backends.scheduling import PREEMPTED, Queued, Ran

_LATE_S = 5.0
"""After it answers again, until a job that it was sent before is in its queue."""
_SKEW_S = 3600.0
"""By which the clocks of this machine and of the controller may differ at most."""

CANCEL = "scancel"


def is_there() -> bool:
    """Whether this machine has SLURM's programs."""
    return shutil.which("squeue") is not None


def queued(job: str) -> Queued | None:
    fields = "State:|,Reason:|,NodeList:|,StartTime:|,RestartCnt:|"
    answer = ask(["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--Format={fields}"])
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise UserError(f"squeue: {last_line(answer.stderr)}")
    lines = answer.stdout.splitlines()
    if answer.returncode or not lines:
        return None
    state, reason, nodes, start, restarts = (field.strip() for field in lines[0].split("|")[:5])
    return Queued(state, reason, nodes, start, int(restarts))


def history(job: str, *, since: float) -> list[Ran]:
    fields = "JobID,State,NodeList,Start,End,ExitCode"
    # Clusters bound how much time may be asked for.
    start = datetime.fromtimestamp(since - _SKEW_S).isoformat(timespec="seconds")
    asked = ["sacct", "-X", "-D", "-P", "-n", f"--jobs={job}", f"--format={fields}", f"--starttime={start}"]
    found = []
    for line in _accounting(asked):
        name, state, nodes, start, end, code = line.split("|")
        if name == job:
            # As in "CANCELLED by 0".
            found.append(Ran(state.split()[0], nodes, start, end, code))
    return found


def warning(job: str, *, lead_s: int) -> str:
    """Why the scheduler warns a running job by a signal; ``lead_s``: how long before its time limit it should."""
    # It looks at time limits twice a minute, and warns when the next look would be too late.
    fields = "PreemptTime:.30,TimeLeft:.30"
    answer = ask(["squeue", "--noheader", f"--jobs={job}", f"--Format={fields}"])
    preempted, left = ([*answer.stdout.split(), "", ""])[:2]
    if preempted not in ("", "N/A", "None"):
        return PREEMPTED
    if left.count(":") == 1 and int(left.split(":")[0]) * 60 + int(left.split(":")[1]) <= lead_s + 60:
        return "its job's time limit comes near"
    return ""


def lost_nodes(ran: Ran) -> list[str]:
    asked = ["sacctmgr", "-n", "-P", "show", "event", f"nodes={ran.nodes}", f"start={ran.start}"]
    found = []
    for line in _accounting([*asked, "format=nodename,timestart,state"]):
        node, start, state = line.split("|")
        # Both are local times in ISO's format, which sort as text.
        if state.startswith("DOWN") and ran.start <= start <= ran.end and node not in found:
            found.append(node)
    return found


def submit(script: Path) -> str:
    """Put a batch script into the queue, once whatever the controller does; the job's number.

    Raises ``Silence`` without its answer, and ``UserError`` where it refuses.
    """
    while isinstance(answer := ask_once(["sbatch", "--parsable", str(script)]), str):
        # It may have been taken, and only the answer be lost.
        try:
            wait("sbatch", answer)
            number = _number_of(script)
        except Silence as silence:
            lost = f"{silent('sbatch', answer)}; it is not known to be queued: if it is after all, it ends by itself"
            raise Silence(lost) from silence
        if number is not None:
            return number
    if answer.returncode:
        errors = [line for line in answer.stderr.splitlines() if "error:" in line] or [answer.stderr]
        reason = last_line(errors[-1]).removeprefix("sbatch: ").removeprefix("error: ")
        raise UserError(f"the scheduler refused the job: {reason}")
    # With several clusters, theirs follows.
    printed = (answer.stdout.split() or [""])[-1].split(";")[0]
    # Some clusters' sbatch is a program around SLURM's.
    number = printed if printed.isdecimal() else _number_of(script)
    if number is not None:
        return number
    raise UserError(
        f"sbatch --parsable took the job, but did not print its number ({last_line(answer.stdout)!r}): look with "
        "squeue, and for what stands before SLURM's sbatch in PATH"
    )


def _number_of(script: Path) -> str | None:
    """The number of the job that a batch script became, if it did."""
    for pause in (0.0, _LATE_S):
        time.sleep(pause)
        for job, command in _scripts("--states=all"):
            if command == str(script):
                return job
    return None


def jobs_of(folder: Path) -> list[str]:
    found = _scripts("--states=pending,running,suspended,completing")
    return list(dict.fromkeys(job for job, command in found if Path(command).parent == folder))


def _scripts(states: str) -> Iterator[tuple[str, str]]:
    """This user's jobs in the queue, an array's tasks alike, each with the path of its batch script."""
    fields = "ArrayJobID:|,Command:|"
    asked = ["squeue", "--noheader", states, f"--user={getpass.getuser()}", f"--Format={fields}"]
    for line in ask(asked, check=True).stdout.splitlines():
        job, command = line.split("|")[:2]
        yield job, command


def refusal(script: Path, *, exclude: str = "", partition: str = "") -> str | None:
    """Why the scheduler would not take the batch script, without some nodes or in one partition; None: it would."""
    options = {"exclude": exclude, "partition": partition}
    further = [f"--{name}={value}" for name, value in options.items() if value]
    answer = ask(["sbatch", "--test-only", *further, str(script)])
    if answer.returncode == 0:
        return None
    return last_line(answer.stderr).removeprefix("allocation failure: ")


def expected_start(script: Path) -> str:
    """What the scheduler says of when and where the batch script would start."""
    answer = ask(["sbatch", "--test-only", str(script)])
    return last_line(answer.stderr).removeprefix("sbatch: ")


def partitions() -> list[dict[str, str]]:
    """What the controller says of each partition, by its own names: ``PartitionName``, ``MaxTime``, ..."""
    answer = ask(["scontrol", "show", "partition", "--oneliner"], check=True)
    found = (line.split() for line in answer.stdout.splitlines() if "PartitionName=" in line)
    return [dict(word.split("=", 1) for word in words if "=" in word) for words in found]


def nodes(partition: str) -> list[dict[str, str]]:
    """The nodes of a partition, or of several with commas, whatever state they are in; fields of ``sinfo``."""
    names = ("NodeHost", "StateLong", "CPUs", "Memory", "Gres", "Features", "Reason")
    fields = ",".join(f"{name}:|" for name in names)
    answer = ask(["sinfo", "--noheader", "--Node", f"--partition={partition}", f"--Format={fields}"], check=True)
    found = [dict(zip(names, line.split("|"), strict=False)) for line in answer.stdout.splitlines()]
    # One that is in several partitions comes once for each.
    return list({node["NodeHost"]: node for node in found}.values())


def host_names(nodes: str) -> list[str]:
    """The nodes of a list such as ``n[1-3],m5``."""
    return ask(["scontrol", "show", "hostnames", nodes], check=True).stdout.split()


def qos_limit(name: str) -> str:
    """The longest time that a quality of service allows, as SLURM writes it; empty: none, or it is not known."""
    return "".join(_accounting(["sacctmgr", "-n", "-P", "show", "qos", f"name={name}", "format=maxwall"])).strip()


def enforces_limits() -> bool:
    """Whether the limits of the accounting (QOS, associations) hold."""
    told = ask(["scontrol", "show", "config"]).stdout.splitlines()
    enforced = next((line for line in told if line.startswith("AccountingStorageEnforce ")), "")
    return any(word in enforced for word in ("limits", "qos", "safe", "all"))


def requeue(job: str) -> None:
    ask(["scontrol", "requeue", job], check=True, deaf=True)


def exclude(job: str, nodes: str) -> None:
    """Have a job that waits in the queue not start on some nodes. Raises ``UserError`` if it runs."""
    ask(["scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}"], check=True, deaf=True)


def cancel(job: str) -> None:
    answer = ask([CANCEL, job])
    # The answer to an earlier asking may have been lost.
    if answer.returncode and "already completing or completed" not in answer.stderr:
        raise UserError(f"{CANCEL} {job}: {last_line(answer.stderr)}")


def _accounting(command: list[str]) -> list[str]:
    """The lines of an answer of the accounting; none without one: what is asked of it is good to know, no more."""
    answer = ask_once(command)
    return [] if isinstance(answer, str) or answer.returncode else answer.stdout.splitlines()
