"""``python -m glci_dist`` is ``glci``; ``torchrun -m glci_dist`` runs the same command in several processes."""

from __future__ import annotations

import os
import sys
import threading
import traceback

from glci_dist import output


def entry() -> None:
    """Run one command and end the process with its exit code."""
    output.take_over()
    # Imported after take_over, as they open files and keep references to the streams.
    from glci_dist.cli import main, told
    from glci_dist.cluster.elastic import write_error_file
    from glci_dist.urls import without_secrets

    def in_full(error: BaseException) -> str:
        # Libraries print urls with their credentials.
        return without_secrets("".join(traceback.format_exception(error)).rstrip())

    def of_thread(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
            output.say(in_full(ended.exc_value))

    threading.excepthook = of_thread
    try:
        code = main()
    except SystemExit as ending:
        # From the parser: printed help, or a usage error.
        code = told(ending.code if isinstance(ending.code, int) else 1, is_product=True)
    except Exception as error:
        code = 1
        write_error_file(in_full(error))
        output.say(in_full(error))
    output.flush()
    if "deepspeed" in sys.modules:
        # DeepSpeed keeps process groups whose threads sometimes abort the interpreter's shutdown
        # ("terminate called without an active exception"): a finished run would count as failed.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
