"""Signals become a flag that the ranks agree on at a step's end; nothing happens inside a handler."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether this rank was asked to stop, by which signal, and how long ago."""

    def __init__(self, within_s: float = 0.0) -> None:
        """``within_s``: the process ends that long after the signal whatever it does then; 0: it does not."""
        self.name: str | None = None
        self._within_s = within_s
        self._at: float | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    @property
    def seconds(self) -> float | None:
        """Since the signal; None: there was none."""
        return None if self._at is None else time.monotonic() - self._at

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            # The second Ctrl-C means "now".
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def _listen(self, arrivals: socket.socket) -> None:
        """Take the time of the first signal, and end the process when its time is up.

        In a thread: while a collective waits, Python's own handlers do not run.
        """
        while numbers := arrivals.recv(1):
            if numbers[0] in STOPPING:
                self._at = time.monotonic()
                break
        if self._within_s and not self._ended.wait(self._within_s):
            print(
                f"glci: stopped without saving: it took more than checkpoints.stop_within_s={self._within_s:g} since "
                "the signal; the same command goes on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
            os._exit(3)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        arrivals, sender = socket.socketpair()
        sender.setblocking(False)
        self._ended = threading.Event()
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._listen, args=(arrivals,), name="signals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            self._ended.set()
            sender.close()
            thread.join()
            arrivals.close()


@contextmanager
def stop_request(within_s: float = 0.0) -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 into a ``StopRequest`` while the block lasts."""
    request = StopRequest(within_s)
    with request._listening():
        before = {number: signal.signal(number, request._handle) for number in STOPPING}
        try:
            yield request
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
