"""Asking SLURM's programs: in which environment, and again where the controller does not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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


class _Patience:
    """For how long a scheduler that does not answer is asked again, over all questions of a command."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until: float | None = None

    def is_left(self, program: str, said: str) -> bool:
        """Whether to ask again; says so at the first time."""
        if self._until is None:
            self._until = time.monotonic() + self.seconds
            if self.seconds:
                print(
                    f"glci: the scheduler does not answer ({program}: {said}): asking again, for {self.seconds:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
        return time.monotonic() < self._until


_patience: ContextVar[_Patience | None] = ContextVar("patience", default=None)


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
    while True:
        answer, said = ask_once(command, deaf=deaf)
        if said is None:
            break
        if not wait(command[0], said):
            raise Silence(silent(command[0], said))
    assert answer is not None
    if check and answer.returncode:
        raise UserError(f"{' '.join(command)}: {last_line(answer.stderr.strip() or answer.stdout.strip())}")
    return answer


def ask_once(command: list[str], *, deaf: bool = False) -> tuple[subprocess.CompletedProcess[str] | None, str | None]:
    """The program's answer, and what it says of the controller's silence: None where that did answer."""
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
            preexec_fn=_be_deaf if deaf else None,
        )
    except FileNotFoundError:
        raise UserError(
            f"there is no {command[0]} on this machine: go to a login node of the cluster, try cluster.executor=local, "
            "or bring a cluster up here (make slurm-up)"
        ) from None
    except subprocess.TimeoutExpired:
        return None, f"no answer within {_ANSWER_S:.0f} s"
    if answer.returncode and "Could not establish a configuration source" in answer.stderr:
        raise UserError(
            "SLURM's programs find no configuration on this machine: go to a login node, or say where it is (for the "
            "cluster in a box: export SLURM_CONF=/var/lib/glci-slurm/slurm.conf)"
        )
    return answer, _silence_in(answer.stderr) if answer.returncode else None


def wait(program: str, said: str) -> bool:
    """Wait a moment before asking again; False: there is no patience left."""
    held = _patience.get()
    if held is None or not held.is_left(program, said):
        return False
    time.sleep(_PAUSE_S)
    return True


def silent(program: str, said: str) -> str:
    """That the scheduler did not answer, as a line."""
    held = _patience.get()
    after = f", asked again for {held.seconds:.0f} s" if held is not None and held.seconds else ""
    what = "munge, which proves who asks, does not answer here" if "munge" in said.lower() else "it is down or busy"
    return f"the scheduler does not answer ({program}: {said}{after}): {what}; try again later, or tell its operators"


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"


def _silence_in(stderr: str) -> str | None:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    found = [line for line in lines if any(sign in line.lower() for sign in _SILENCE)]
    # Where it is munge, every further line follows from that.
    of_munge = [line for line in found if "munge" in line.lower()]
    return ((of_munge or found)[-1]).removeprefix("sbatch: ").removeprefix("error: ") if found else None


def _be_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
