"""What srun starts on a node, ``python -m glci_dist.slurm.task ARGUMENTS``: python with the arguments, signals waiting.

The launcher takes a while to be read in, and a signal that comes before it can say what follows would end it, and
the run's job with it. Until then signals wait.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection

from glci_dist.errors import STOP_SIGNALS

DETACH = "--detach"
"""First among the arguments of a job on this machine, which has nothing to do with the terminal that started it."""
IGNORED = "GLCI_IGNORED_SIGNALS"
"""What `glci submit` was started to ignore, for jobs on this machine."""


def hold() -> None:
    """Have signals wait from now on, also for the program that this process goes on as."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def release() -> None:
    """Take the signals that waited, and those to come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def answer(ignored: Collection[str]) -> None:
    """Answer again what `glci submit` ignored for its terminal's sake, but for ``ignored``, the names of signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if number.name not in ignored:
            signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    hold()
    arguments = sys.argv[1:]
    if arguments[:1] == [DETACH]:
        arguments = arguments[1:]
        # A key in that terminal is not for it.
        os.setsid()
        # From here on those come from elsewhere, and are meant for it.
        answer(os.environ.get(IGNORED, "").split())
    os.execv(sys.executable, [sys.executable, *arguments])
