"""What a worker reports to torch's elastic agent (error file, current step), and the scheduler's job it belongs to."""

from __future__ import annotations

import enum
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from glci_dist.cluster.collectives import progress
from glci_dist.urls import without_secrets


def job() -> dict[str, str]:
    """The scheduler's job that this process belongs to, and the number of its restart; empty outside of a job."""
    number = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))
    if not number:
        return {}
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return {
        "job": f"{number}_{task}" if task is not None else number,
        "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
    }


class FailureRole(enum.StrEnum):
    """A process's role in a failure."""

    BROKE = "broke"
    """It failed by itself."""
    WAITED = "waited"
    """It ends because another rank, which it names, did not enter a collective."""
    LOST = "lost"
    """It ends because another rank is gone: that rank's cause is the one to report."""


_listener: Callable[[str, FailureRole], None] | None = None


def on_ending(listener: Callable[[str, FailureRole], None] | None) -> None:
    """Set the function that is called with the reason before this process ends for any reason; None: remove it."""
    global _listener
    _listener = listener


def notify_ending(why: str, part: FailureRole = FailureRole.BROKE) -> None:
    """Call the listener that ``on_ending`` set with why this process ends."""
    if _listener is not None:
        _listener(without_secrets(why), part)


def write_error_file(why: str, part: FailureRole = FailureRole.BROKE) -> None:
    """Write why this process fails, and in which step, to the error file of torch's elastic agent; once."""
    notify_ending(why, part)
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and not Path(file).exists():
        record = {"message": without_secrets(why), "timestamp": int(time.time()), "step": progress().step, "part": part}
        with suppress(OSError):
            Path(file).write_text(json.dumps(record), encoding="utf-8")


class StepFile:
    """Keeps the current step in a file next to the error file, where the agent finds it even after a SIGKILL."""

    def __init__(self) -> None:
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        self._handle: int | None = None
        if file:
            with suppress(OSError):
                self._handle = os.open(_step_file(file), os.O_WRONLY | os.O_CREAT, 0o600)

    def write(self, step: int) -> None:
        """Record the step that begins."""
        if self._handle is not None:
            os.pwrite(self._handle, step.to_bytes(8, "little"), 0)


def read_step_file(error_file: str) -> int:
    """The step that the worker with this error file was in when it ended; -1: it had begun none."""
    with suppress(FileNotFoundError):
        if error_file and (written := _step_file(error_file).read_bytes()):
            return int.from_bytes(written, "little")
    return -1


def _step_file(error_file: str) -> Path:
    return Path(error_file).with_suffix(".step")
