"""Following a job's output until it ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from glci_dist.errors import UserError
from glci_dist.runs.ledger import account
from glci_dist.slurm import scheduler
from glci_dist.slurm.jobs import Submitted

if TYPE_CHECKING:
    from submitit import Job

_LOOK_S = 2.0


def follow(run: Path, submitted: Submitted, job: Job[str]) -> int:
    """Print what the job's first node writes until the job ends; 0 if its run is complete, else 1."""
    out, place, said = Path(submitted.out), 0, ""
    while True:
        alive, state = _state(submitted) if submitted.executor == "slurm" else (not job.done(), job.state)
        if state != said:
            print(f"job {submitted.job}: {state}", flush=True)
            said = state
        if out.exists():
            with out.open(encoding="utf-8", errors="replace") as file:
                file.seek(place)
                if text := file.read():
                    print(text, end="", flush=True)
                place = file.tell()
        if not alive:
            break
        time.sleep(_LOOK_S)
    attempts = account(run).attempts
    return 0 if attempts and attempts[-1].state == "done" else 1


def _state(submitted: Submitted) -> tuple[bool, str]:
    try:
        there = scheduler.queued(submitted.job)
    except UserError as silence:
        # A controller that is busy, or starts again, loses no job.
        return True, f"not known: {silence}"
    if there is not None and not there.has_ended:
        reason = f" ({there.reason})" if there.state == "PENDING" and there.reason != "None" else ""
        return True, f"{there.state}{reason}" + (f" on {there.nodes}" if there.nodes else "")
    ran = scheduler.history(submitted.job, since=submitted.time)
    return False, there.state if there else ran[-1].state if ran else "gone"
