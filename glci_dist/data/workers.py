"""Loader worker processes: how they start, which signals they ignore, and when they end.

SLURM sends a job's signals to all of its processes. Only the training process may handle them; a worker that died of
one would end the run before its checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

import cv2

from glci_dist.errors import STOP_SIGNALS


def context(preload: str) -> ForkServerContext:
    """A fork server that has imported module ``preload`` once for all workers, immune to ``STOP_SIGNALS``.

    A fork of the training process itself would copy its threads' locks and its memory.
    """
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["glci_dist.data.quiet_server", preload])
    # A blocked signal stays blocked over fork and exec. One that arrives here meanwhile is pending, and is delivered to
    # this process once the mask is restored.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    options = list(sys.warnoptions)
    # If workers cannot start, the resource tracker would warn of "leaked" objects after our own line.
    sys.warnoptions.append("ignore:resource_tracker")
    try:
        # The resource tracker unblocks SIGINT and SIGTERM after its start: start it first, then set the mask again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        forkserver.ensure_running()
    finally:
        sys.warnoptions[:] = options
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return forking


def start(worker: int) -> None:
    """Prepare a worker process (``worker_init_fn``); torch's own worker loop gives it one thread."""
    cv2.setNumThreads(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for watch in (_end_with_parent, _end_when_parent_says):
        threading.Thread(target=watch, daemon=True, name=f"worker-{worker}-{watch.__name__}").start()


def _end_with_parent() -> None:
    # torch watches the parent process, which is the fork server here; that outlives a killed training process.
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _end_when_parent_says() -> None:
    # DataLoader ends a stuck worker (in a slow transfer, say) by SIGTERM; SIGTERM from other processes is ignored.
    parent = multiprocessing.parent_process()
    assert parent is not None
    while True:
        told = signal.sigwaitinfo(STOP_SIGNALS)
        if told.si_signo == signal.SIGTERM and told.si_pid == parent.pid:
            os._exit(0)
