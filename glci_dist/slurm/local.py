"""Jobs that are processes of this machine (``cluster.executor=local``), by the number that submitit gave them."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def is_alive(job: str, folder: Path) -> bool:
    """Whether the process that holds the job's others is there still; ``folder``: submitit's for it."""
    with suppress(OSError):
        # Its number may be another's by now.
        words = Path(f"/proc/{job}/cmdline").read_text(errors="replace").split("\0")
        return "submitit.local._local" in words and str(folder) in words
    return False


def end(job: str) -> None:
    """Have it save and end; it passes the signal on."""
    with suppress(ProcessLookupError):
        os.kill(int(job), signal.SIGTERM)
