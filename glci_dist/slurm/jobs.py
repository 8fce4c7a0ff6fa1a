"""The jobs that a run was submitted as: lines of ``RUN/jobs/submitted.jsonl``; following one until it ends."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from glci_dist.errors import UserError
from glci_dist.runs.attempts import parsed
from glci_dist.runs.ledger import account
from glci_dist.slurm.backends.base import Backend, JobHandle, Submitted
from glci_dist.slurm.backends.choice import backend
from glci_dist.slurm.backends.scheduling import Scheduler

_LOOK_S = 2.0


def submitted(run: Path) -> list[Submitted]:
    """The jobs that a run was submitted as, oldest first, noted by this version or another one."""
    try:
        lines = _file(run).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    names = Submitted.__dataclass_fields__.keys()
    # A full disk may have torn a line.
    whole = (record for record in map(parsed, lines) if names <= record.keys())
    return [Submitted(**{name: record[name] for name in names}) for record in whole]


def active(run: Path) -> list[Submitted]:
    """Those of the run's jobs that wait in the queue, or run. Raises ``UserError`` without the scheduler's answer."""
    return [each for each in submitted(run) if backend(each.executor).is_alive(each)]


def check_idle(run: Path, chosen: Backend) -> None:
    """Raise ``UserError`` where a job carries the run already."""
    for job in active(run):
        raise UserError(f"{run} has job {job.job} in the queue already: see `glci status`, or end it by `glci cancel`")
    for scheduler, number in unnoted(run, chosen):
        raise UserError(
            f"{run} has job {number} in the queue already, though its folder says nothing of it (was it removed?): "
            f"{scheduler.CANCEL} {number}"
        )


def unnoted(run: Path, chosen: Backend) -> list[tuple[Scheduler, str]]:
    """Jobs in the queue that the run was submitted as, and of which its folder says nothing, as after its removal."""
    scheduler = chosen.scheduler
    if scheduler is None or not scheduler.is_there():
        return []
    noted = {each.job.split("_")[0] for each in submitted(run)}
    return [(scheduler, number) for number in scheduler.jobs_of(run.absolute() / "jobs") if number not in noted]


def add(run: Path, job: Submitted) -> None:
    """Note that a run was submitted."""
    with _file(run).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(job)) + "\n")


def follow(run: Path, submitted: Submitted, handle: JobHandle) -> int:
    """Print what the job's first node writes until the job ends; 0 if its run is complete, else 1."""
    out, place, said = Path(submitted.out), 0, ""
    chosen = backend(submitted.executor)
    while True:
        is_alive, state = chosen.watch(submitted, handle)
        if state != said:
            print(f"job {submitted.job}: {state}", flush=True)
            said = state
        if out.exists():
            with out.open(encoding="utf-8", errors="replace") as file:
                file.seek(place)
                if text := file.read():
                    print(text, end="", flush=True)
                place = file.tell()
        if not is_alive:
            break
        time.sleep(_LOOK_S)
    attempts = account(run).attempts
    return 0 if attempts and attempts[-1].state == "done" else 1


def _file(run: Path) -> Path:
    return run / "jobs" / "submitted.jsonl"
