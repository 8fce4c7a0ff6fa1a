"""What goes wrong in a worker, by a ``sitecustomize`` module that a job puts onto its workers' path."""

from __future__ import annotations

from pathlib import Path

_CRASH = """\
import os, sys

def hook(event, details):
    if event == "glci.step" and details[0] == {step} and os.environ.get("RANK") == "1":
        raise RuntimeError("the device fell off the bus")

sys.addaudithook(hook)
"""

_SLOW = """\
import sys, time

sys.addaudithook(lambda event, details: time.sleep({seconds}) if event == "glci.step" else None)
"""

_HIDE = """\
import ctypes, os, socket, subprocess

if "RANK" in os.environ and socket.gethostname() == "{host}":
    # For this process and its children alone: another folder lies over the shards'.
    assert ctypes.CDLL(None, use_errno=True).unshare(0x00020000) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "{folder}"], check=True)
"""


def crash_in_step(step: int, folder: Path) -> str:
    """The override that has rank 1 crash whenever it comes to ``step``."""
    return _customize(folder, _CRASH.format(step=step))


def slow_steps(seconds: float, folder: Path) -> str:
    """The override that makes every step take so many seconds longer."""
    return _customize(folder, _SLOW.format(seconds=seconds))


def hide_on(host: str, hidden: Path, folder: Path) -> str:
    """The override that hides a folder from the workers of a host."""
    return _customize(folder, _HIDE.format(host=host, folder=hidden))


def _customize(folder: Path, content: str) -> str:
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(content)
    return f"+cluster.environment.PYTHONPATH={folder}"
