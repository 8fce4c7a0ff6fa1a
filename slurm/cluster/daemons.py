"""Daemons of the cluster in a box: started, found again by pid and start time, stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def start_daemon(
    state: Path, name: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path | None = None
) -> None:
    """Start a daemon, unless it runs already."""
    if is_running(state, name):
        return
    program = find(command[0]) or command[0]
    with (log or state / "log" / f"{name}.out").open("a") as output:
        process = subprocess.Popen(
            [program, *command[1:]],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
    record = {"pid": process.pid, "began": _began(process.pid)}
    (state / "pids" / f"{name}.json").write_text(json.dumps(record))


def stop_daemon(state: Path, name: str) -> None:
    record = state / "pids" / f"{name}.json"
    if not is_running(state, name):
        return
    pid = json.loads(record.read_text())["pid"]
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + patience
        while is_running(state, name) and time.monotonic() < deadline:
            time.sleep(0.05)


def is_running(state: Path, name: str) -> bool:
    """Whether the process that was started under this name still runs, and is no other's with its number."""
    try:
        record = json.loads((state / "pids" / f"{name}.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    return record["began"] is not None and _began(record["pid"]) == record["began"]


def _began(pid: int) -> str | None:
    """When a process began, in the kernel's words; None where it is gone, or dead and not yet reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
