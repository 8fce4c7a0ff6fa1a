"""Exit codes, and the exceptions that end a command early."""

from __future__ import annotations

import resource
import signal
from enum import IntEnum
from pathlib import Path

_NO_FILES = "Too many open files"
_FILES = 1024
"""Number of open files that is usually enough for a rank."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which SLURM, submitit, terminals and users stop a run; usually sent to all processes of a job."""


def in_a_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class ExitCode(IntEnum):
    """The exit codes of all commands."""

    DONE = 0
    FAULT = 1
    """The command failed, though the request was valid."""
    REFUSED = 2
    """The request was invalid; one line says why."""
    STOPPED = 3
    """Stopped by a signal, with the state saved: the same command resumes."""
    SUPERSEDED = 4
    """A newer attempt owns the run."""
    INTERRUPTED = 130
    """Stopped at once, by a second Ctrl-C."""


class Ending(Exception):
    """Why a command ends, in one line.

    ``one_rank``: only this rank knows (its node's disk, a lost peer), so this rank has to print it.
    Advice is appended to messages about too many open files.
    """

    def __init__(self, message: str, *, one_rank: bool = False) -> None:
        if is_short_of_files(message) and "ulimit -n" not in message:
            message = f"{message}: {more_files(message)}"
        super().__init__(message)
        self.one_rank = one_rank


class UserError(Ending):
    """The request is invalid: exit code 2. The message has the value, the rule it breaks and what to do."""


class Interrupted(Ending):
    """A signal stopped the run, with the state saved; the same command resumes it: exit code 3."""


class Fault(Ending):
    """The run cannot continue, though the request was valid: exit code 1."""


class Superseded(Fault):
    """A newer attempt owns the run, so this one ends without writing anything: exit code 4, not to be restarted."""


def is_short_of_files(said: BaseException | str) -> bool:
    """Whether an error is about too many open files; libraries have no error class for it."""
    return _NO_FILES in str(said)


def more_files(said: BaseException | str = "") -> str:
    """Advice for too many open files, in this process or, if ``said`` says so, on the whole machine."""
    if f"{_NO_FILES} in system" in str(said):
        return "the whole machine has too many open (not ulimit -n): raise sysctl fs.file-max, or close some"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_FILES, 4 * soft)
    beyond = hard != resource.RLIM_INFINITY and hard < wanted
    where = f", of {hard} at the most here: ask who runs the machine or container for more" if beyond else ""
    return f"raise the limit on open files, {soft} now (ulimit -n {wanted}{where})"


def out_of_memory(error: MemoryError, at: str = "") -> Fault:
    """The ``Fault`` for a command that is out of memory; ``at``: what needed it."""
    said = " ".join(str(error).split())
    return Fault(
        f"out of memory{f' at {at}' if at else ''}{f' ({said})' if said else ''}: free some or raise its limit, or use "
        "fewer --processes where the command has them; then run the same command again"
    )


def make_folder(folder: Path, option: str) -> None:
    """Make the folder that a command writes into. Raises ``UserError`` with ``option`` if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): name another with {option}") from error
