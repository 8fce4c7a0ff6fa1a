"""What srun starts on a node, ``python -m glci_dist.slurm.task ARGUMENTS``: python with the arguments, signals waiting.

The launcher takes a while to be read in, and a signal that comes before it can say what follows would end it, and
the run's job with it. Until then signals wait.
"""

from __future__ import annotations

import os
import signal
import sys

from glci_dist.errors import STOP_SIGNALS

DETACH = "--detach"
"""First among the arguments of a job on this machine, which has nothing to do with the terminal that started it."""
IGNORED = "GLCI_IGNORED_SIGNALS"
"""What `glci submit` was started to ignore, for jobs on this machine: names of signals."""


def release() -> None:
    """Take the signals that waited, and those to come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


if __name__ == "__main__":
    # Also for the program that this process goes on as.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    arguments = sys.argv[1:]
    if arguments[:1] == [DETACH]:
        arguments = arguments[1:]
        # A key in that terminal is not for it.
        os.setsid()
        for number in (signal.SIGINT, signal.SIGHUP):
            # `glci submit` ignores them for its terminal's sake. From here on they are meant for this process.
            if number.name not in os.environ.get(IGNORED, "").split():
                signal.signal(number, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *arguments])
