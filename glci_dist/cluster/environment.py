"""What the launcher (torchrun, `glci submit`'s, or none) says of this process, and what is said back to it."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from glci_dist.cluster.collectives import place


def environment_rank() -> int:
    """The rank that the launcher gave this process; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def job() -> dict[str, str]:
    """The scheduler's job that this process is part of, and which restart of it; empty outside of one."""
    number = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))
    if not number:
        return {}
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return {
        "job": f"{number}_{task}" if task is not None else number,
        "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
    }


def tell_cause(why: str) -> None:
    """Leave why this process fails, and in which step, where torch's elastic agent looks for it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and not Path(file).exists():
        record = {"message": why, "timestamp": int(time.time()), "step": place().step}
        with suppress(OSError):
            Path(file).write_text(json.dumps(record))
