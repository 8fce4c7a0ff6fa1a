"""What goes wrong in a worker, by a ``sitecustomize`` module that a job puts onto its workers' path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.slurm.box import NODES

_CRASH = """\
import os, sys

def hook(event, details):
    if event == "glci.step" and details[0] == {step} and os.environ.get("RANK") == "1":
        raise RuntimeError("the device fell off the bus")

sys.addaudithook(hook)
"""

_CRASH_ON = """\
import os, socket, sys

def hook(event, details):
    if event == "glci.step" and details[0] == 6 + 3 * int(os.environ["TORCHELASTIC_RESTART_COUNT"]):
        raise RuntimeError("the device fell off the bus")

if "RANK" in os.environ and socket.gethostname() == "{host}":
    sys.addaudithook(hook)
"""

_SLOW = """\
import os, socket, sys, time

def hook(event, details):
    if event == "glci.step" and details[0] < {until}:
        time.sleep({seconds})

if int(os.environ.get("SLURM_RESTART_COUNT", "0")) < {restarts} and socket.gethostname() in {hosts}:
    sys.addaudithook(hook)
"""

_SLOW_START = """\
import os, time

if "RANK" in os.environ:
    time.sleep({seconds})
"""

_TELL_CODE = """\
import os, pathlib, sys

def hook(event, details):
    if event == "glci.step":
        # By a rename: the other ranks write it too.
        written = pathlib.Path("{folder}", f"code.{{os.getpid()}}")
        written.write_text(sys.modules["glci_dist"].__file__)
        written.replace("{folder}/code")

sys.addaudithook(hook)
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


def crash_on(host: str, folder: Path) -> str:
    """The override that has the ranks of a host crash, in another step after each start."""
    return _customize(folder, _CRASH_ON.format(host=host))


def slow_steps(
    seconds: float, folder: Path, *, hosts: Sequence[str] = NODES, until: int = 1_000_000, restarts: int = 1_000_000
) -> str:
    """The override that makes steps take so many seconds longer: on ``hosts``, in the steps before ``until``,
    in a job that was queued again fewer than ``restarts`` times.
    """
    return _customize(folder, _SLOW.format(seconds=seconds, hosts=tuple(hosts), until=until, restarts=restarts))


def slow_start(seconds: float, folder: Path) -> str:
    """The override that makes workers take so many seconds longer before they do anything at all."""
    return _customize(folder, _SLOW_START.format(seconds=seconds))


def tell_code(folder: Path) -> str:
    """The override that has workers write into ``folder``/code which copy of the code they run."""
    return _customize(folder, _TELL_CODE.format(folder=folder))


def hide_on(host: str, hidden: Path, folder: Path) -> str:
    """The override that hides a folder from the workers of a host."""
    return _customize(folder, _HIDE.format(host=host, folder=hidden))


def _customize(folder: Path, content: str) -> str:
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(content)
    return f"+cluster.environment.PYTHONPATH={folder}"
