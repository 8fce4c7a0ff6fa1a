"""The ways a command ends early."""

from __future__ import annotations

from pathlib import Path


class Ending(Exception):
    """Why a command ends, in one line.

    With ``one_rank`` only this rank knows (its node's disk, a lost peer), so this rank has to say it.
    """

    def __init__(self, message: str, *, one_rank: bool = False) -> None:
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
