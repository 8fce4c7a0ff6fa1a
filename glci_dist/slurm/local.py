"""Jobs that are processes of this machine (``cluster.executor=local``), by the number that submitit gave them."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def is_alive(job: str) -> bool:
    """Whether the process that holds the job's others is there still."""
    with suppress(OSError):
        # Its number may be another's by now.
        return b"submitit.local._local" in Path(f"/proc/{job}/cmdline").read_bytes().split(b"\0")
    return False


def end(job: str) -> None:
    """Have it save and end; it passes the signal on."""
    with suppress(ProcessLookupError):
        os.kill(int(job), signal.SIGTERM)
