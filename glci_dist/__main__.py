"""``python -m glci_dist`` is ``glci``; ``torchrun -m glci_dist`` is the same command in more processes."""

from __future__ import annotations

import os
import sys
import traceback

from glci_dist.cli import main
from glci_dist.cluster.environment import tell_cause


def entry() -> None:
    """Run one command and end the process with its exit code."""
    try:
        code = main()
    except Exception:
        tell_cause(traceback.format_exc())
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    if "deepspeed" in sys.modules:
        # DeepSpeed keeps process groups whose threads abort the interpreter's own shutdown now and
        # then ("terminate called without an active exception"): a finished run would count as failed.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
