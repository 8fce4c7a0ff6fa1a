"""What the agent that started this process is told of it, and the scheduler's job that it is part of."""

from __future__ import annotations

import enum
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from glci_dist.cluster.collectives import place
from glci_dist.urls import without_secrets


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


class Part(enum.StrEnum):
    """A process's part in a failure."""

    BROKE = "broke"
    """It failed by itself."""
    WAITED = "waited"
    """It ends because another rank did not come, and says which."""
    LOST = "lost"
    """It ends because another rank is gone, whose cause is the one to look for."""


_listener: Callable[[str, Part], None] | None = None


def on_ending(listener: Callable[[str, Part], None] | None) -> None:
    """Call ``listener`` with why this process ends, before it does, whoever ends it; None: nobody any more."""
    global _listener
    _listener = listener


def say_ending(why: str, part: Part = Part.BROKE) -> None:
    """Say why this process ends to whoever writes it down (``on_ending``)."""
    if _listener is not None:
        _listener(without_secrets(why), part)


def tell_cause(why: str, part: Part = Part.BROKE) -> None:
    """Leave why this process fails, and in which step, where torch's elastic agent looks for it; once."""
    say_ending(why, part)
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and not Path(file).exists():
        record = {"message": without_secrets(why), "timestamp": int(time.time()), "step": place().step, "part": part}
        with suppress(OSError):
            Path(file).write_text(json.dumps(record), encoding="utf-8")


class StepNote:
    """Keeps the step in hand where the agent of this node finds it, whatever ends this process."""

    def __init__(self) -> None:
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        self._handle: int | None = None
        if file:
            with suppress(OSError):
                self._handle = os.open(_step_file(file), os.O_WRONLY | os.O_CREAT, 0o600)

    def write(self, step: int) -> None:
        """Begin a step."""
        if self._handle is not None:
            os.pwrite(self._handle, step.to_bytes(8, "little"), 0)


def noted_step(error_file: str) -> int:
    """The step that a worker was in when it ended, by the name of its error file; -1: it had begun none."""
    try:
        written = _step_file(error_file).read_bytes() if error_file else b""
    except FileNotFoundError:
        written = b""
    return int.from_bytes(written, "little") if written else -1


def _step_file(error_file: str) -> Path:
    return Path(error_file).with_suffix(".step")
