"""What srun starts on a node, ``python -m glci_dist.slurm.task ARGUMENTS``: python with the arguments, signals waiting.

The launcher takes a while to be read in, and a signal that comes before it can say what follows would end it, and
the run's job with it. Until then signals wait.
"""

from __future__ import annotations

import os
import signal
import sys

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Those that a job may be warned or ended by."""


def hold() -> None:
    """Have signals wait from now on, also for the program that this process goes on as."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release() -> None:
    """Take the signals that waited, and those to come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


if __name__ == "__main__":
    hold()
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        # A key in the terminal that it was submitted from does not concern it.
        os.setsid()
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
