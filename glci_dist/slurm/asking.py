"""Asking SLURM's programs: in which environment, and again where the controller does not answer."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from glci_dist import output
from glci_dist.errors import UserError
from glci_dist.slurm import inherited

_ANSWER_S = 60.0
"""Of one program."""
_PAUSE_S = 2.0
_SILENCE = (
    *("unable to contact slurm controller", "socket timed out", "timed out", "connection refused", "connection reset"),
    *("zero bytes were transmitted", "in standby mode", "temporarily un", "broken pipe", "no route to host"),
    *("communication connection failure", "message receive failure", "message send failure", "not connected"),
    *("munge encode failed", "munge decode failed", "if munged is up", "protocol authentication error"),
    *("name or service not known", "temporary failure in name resolution"),
    *("missing socket error", "communication shutdown failure"),
)
"""What they say where the controller, or munge, is down, busy or starting: in lower case."""


class Silence(UserError):
    """The scheduler did not answer, and it is not known what it would have said."""


@dataclass
class _Patience:
    """For how long a scheduler that does not answer is asked again, over all questions of a command."""

    seconds: float = 0.0
    until: float | None = None
    """``time.monotonic``, once it did not answer."""


_patience: ContextVar[_Patience] = ContextVar("patience")


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Have what is asked within ask again, for so long over all questions, where there is no answer."""
    token = _patience.set(_Patience(seconds))
    try:
        yield
    finally:
        _patience.reset(token)


def ask(command: list[str], *, check: bool = False, deaf: bool = False) -> subprocess.CompletedProcess[str]:
    """The program's answer. Raises ``Silence`` where the controller gives none, ``UserError`` without the program.

    ``check``: raise ``UserError`` where the program fails. ``deaf``: it is called from within the job that is being
    ended, and has to get through.
    """
    while isinstance(answer := ask_once(command, deaf=deaf), str):
        wait(command[0], answer)
    if check and answer.returncode:
        raise UserError(f"{' '.join(command)}: {last_line(answer.stderr.strip() or answer.stdout.strip())}")
    return answer


def ask_once(command: list[str], *, deaf: bool = False) -> subprocess.CompletedProcess[str] | str:
    """The program's answer; what it says of the controller's silence, where that did not answer."""
    # Messages are looked through: in one language. What a job is to inherit is not changed.
    language = {} if command[0] == "sbatch" else {"LC_ALL": "C"}
    environment = {**inherited.reduced(os.environ), **language}
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=_ANSWER_S,
            preexec_fn=functools.partial(signal.signal, signal.SIGTERM, signal.SIG_IGN) if deaf else None,
        )
    except FileNotFoundError:
        raise UserError(
            f"there is no {command[0]} on this machine: go to a login node of the cluster, try cluster.executor=local, "
            "or bring a cluster up here (make slurm-up)"
        ) from None
    except subprocess.TimeoutExpired:
        return f"no answer within {_ANSWER_S:.0f} s"
    if answer.returncode and "Could not establish a configuration source" in answer.stderr:
        raise UserError(
            "SLURM's programs find no configuration on this machine: go to a login node, or say where it is (for the "
            "cluster in a box: export SLURM_CONF=/var/lib/glci-slurm/slurm.conf)"
        )
    return (_silence_in(answer.stderr) if answer.returncode else None) or answer


def wait(program: str, said: str) -> None:
    """Wait a moment before asking again, which is told at the first time. Raises ``Silence`` without patience left."""
    held = _patience.get(_Patience())
    if held.until is None:
        held.until = time.monotonic() + held.seconds
        if held.seconds:
            output.say(
                f"glci: the scheduler does not answer ({program}: {said}): asking again, for {held.seconds:.0f} s"
            )
    if time.monotonic() >= held.until:
        raise Silence(silent(program, said))
    time.sleep(_PAUSE_S)


def silent(program: str, said: str) -> str:
    """That the scheduler did not answer, as a line."""
    seconds = _patience.get(_Patience()).seconds
    after = f", asked again for {seconds:.0f} s" if seconds else ""
    what = "munge, which proves who asks, does not answer here" if "munge" in said.lower() else "it is down or busy"
    return f"the scheduler does not answer ({program}: {said}{after}): {what}; try again later, or tell its operators"


def last_line(text: str, otherwise: str = "no reason was given") -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else otherwise


def _silence_in(stderr: str) -> str | None:
    found = [line.strip() for line in stderr.splitlines() if any(sign in line.lower() for sign in _SILENCE)]
    # Where it is munge, every further line follows from that.
    of_munge = [line for line in found if "munge" in line.lower()]
    return ((of_munge or found)[-1]).removeprefix("sbatch: ").removeprefix("error: ") if found else None
