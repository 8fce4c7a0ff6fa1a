"""The ways a command ends early."""

from __future__ import annotations

import resource
import signal
from enum import IntEnum
from pathlib import Path

_NO_FILES = "Too many open files"
_FILES = 1024
"""Open files that are enough for a rank, as a rule."""


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What SLURM, submitit, a terminal and users send to have a run stop; to all processes of a job, as a rule."""


class ExitCode(IntEnum):
    """What a command ends with."""

    DONE = 0
    FAULT = 1
    """It cannot go on, by no mistake in what was asked."""
    REFUSED = 2
    """What was asked cannot be done; one line says why."""
    STOPPED = 3
    """By a signal, in good order: the same command goes on."""
    SUPERSEDED = 4
    """A newer attempt owns the run."""
    INTERRUPTED = 130
    """Stopped at once, by a second Ctrl-C."""


class Ending(Exception):
    """Why a command ends, in one line.

    With ``one_rank`` only this rank knows (its node's disk, a lost peer), so this rank has to say it.
    A line that tells of too many open files is given the way out, which is the same wherever that happens.
    """

    def __init__(self, message: str, *, one_rank: bool = False) -> None:
        if is_short_of_files(message) and "ulimit -n" not in message:
            message = f"{message}: {more_files(message)}"
        super().__init__(message)
        self.one_rank = one_rank


class UserError(Ending):
    """What was asked cannot be done: exit code 2. Names the value, the rule it breaks and the way out."""


class Interrupted(Ending):
    """A signal stopped the run in good order; the same command resumes it: exit code 3."""


class Fault(Ending):
    """The run cannot go on, by no mistake in what was asked: exit code 1."""


class Superseded(Fault):
    """A newer attempt owns the run, so this one ends without a trace: exit code 4, not to be restarted."""


def is_short_of_files(said: BaseException | str) -> bool:
    """Whether it tells that no more files can be opened; libraries have no error class for that."""
    return _NO_FILES in str(said)


def more_files(said: BaseException | str = "") -> str:
    """The way out where no more files can be opened, as ``said``: by this process, or on this machine at all."""
    if f"{_NO_FILES} in system" in str(said):
        return "the whole machine has too many open (not ulimit -n): raise sysctl fs.file-max, or close some"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(_FILES, 4 * soft)
    beyond = hard != resource.RLIM_INFINITY and hard < wanted
    where = f", of {hard} at the most here: ask who runs the machine or container for more" if beyond else ""
    return f"raise the limit on open files, {soft} now (ulimit -n {wanted}{where})"


def out_of_memory(error: MemoryError, at: str = "") -> Fault:
    """What to end a command with that has too little memory; ``at``: for what."""
    said = " ".join(str(error).split())
    return Fault(
        f"out of memory{f' at {at}' if at else ''}{f' ({said})' if said else ''}: free some or raise its limit, or use "
        "fewer --processes where the command has them; then run the same command again"
    )


def make_folder(folder: Path, option: str) -> None:
    """Make the folder that a command writes into; ``UserError`` that names ``option`` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): name another with {option}") from error
