"""Following a job's output until it ends."""

from __future__ import annotations

import time
from pathlib import Path

from glci_dist.runs.ledger import account
from glci_dist.slurm.backends.base import JobHandle
from glci_dist.slurm.backends.choice import backend
from glci_dist.slurm.jobs import Submitted

_LOOK_S = 2.0


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
