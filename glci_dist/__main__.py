"""``python -m glci_dist`` is ``glci``; ``torchrun -m glci_dist`` is the same command in more processes."""

from __future__ import annotations

import os
import sys
import threading
import traceback

from glci_dist import output


def entry() -> None:
    """Run one command and end the process with its exit code."""
    output.take_over()
    # What these read in opens files, and keeps streams: that comes after.
    from glci_dist.cli import main, told
    from glci_dist.cluster.elastic import write_error_file
    from glci_dist.urls import without_secrets

    def in_full(error: BaseException) -> str:
        # Libraries say urls with all that is in them.
        return without_secrets("".join(traceback.format_exception(error)).rstrip())

    def of_thread(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
            output.say(in_full(ended.exc_value))

    threading.excepthook = of_thread
    try:
        code = main()
    except SystemExit as ending:
        # Of the parser: a help that was printed, or a mistake in the words.
        code = told(ending.code if isinstance(ending.code, int) else 1, is_product=True)
    except Exception as error:
        code = 1
        write_error_file(in_full(error))
        output.say(in_full(error))
    output.flush()
    if "deepspeed" in sys.modules:
        # DeepSpeed keeps process groups whose threads abort the interpreter's own shutdown now and
        # then ("terminate called without an active exception"): a finished run would count as failed.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
