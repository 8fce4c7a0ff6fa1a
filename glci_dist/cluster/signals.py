"""Signals set a flag that the ranks exchange at a step's end; nothing else happens inside a handler."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from glci_dist import output
from glci_dist.cluster.elastic import notify_ending
from glci_dist.errors import STOP_SIGNALS, ExitCode


def not_ignored(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those of ``numbers`` that this process does not ignore."""
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


class StopRequest:
    """Whether this rank was asked to stop, by which signal, and how long ago."""

    def __init__(self, within_s: float = 0.0) -> None:
        """``within_s``: the process is ended that long after the signal, whatever it is doing; 0: no limit."""
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
        self.name = self.name or signal.Signals(number).name

    def _listen(self, arrivals: socket.socket) -> None:
        """Record the time of the first signal; end the process after ``within_s``, or at a second SIGINT.

        In a thread, because Python's own handlers do not run while the main thread waits in a collective.
        """
        interrupts = 0
        while True:
            try:
                numbers = arrivals.recv(1)
            except TimeoutError:
                self._end(
                    "stopped without saving: it took more than "
                    f"checkpoints.stop_within_s={self._within_s:g} since the signal",
                    ExitCode.STOPPED,
                )
            if not numbers:
                return
            if numbers[0] in STOP_SIGNALS and self._at is None:
                self._at = time.monotonic()
            if self._at is not None and self._within_s:
                arrivals.settimeout(max(0.001, self._at + self._within_s - time.monotonic()))
            interrupts += numbers[0] == signal.SIGINT
            if interrupts == 2:
                self._end("stopped at once", ExitCode.INTERRUPTED)

    def _end(self, why: str, code: int) -> None:
        output.say(f"glci: {why}; the same command goes on from the last checkpoint")
        notify_ending(why)
        os._exit(code)


@contextmanager
def stop_request(within_s: float = 0.0) -> Iterator[StopRequest]:
    """A ``StopRequest`` that ``STOP_SIGNALS`` set while the block lasts.

    Signals that were ignored when this process started (``nohup``, a shell's ``trap "" HUP``) stay ignored.
    """
    request = StopRequest(within_s)
    arrivals, sender = socket.socketpair()
    sender.setblocking(False)
    woken = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=request._listen, args=(arrivals,), name="signals", daemon=True)
    thread.start()
    try:
        before = {number: signal.signal(number, request._handle) for number in not_ignored(STOP_SIGNALS)}
        try:
            yield request
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    finally:
        signal.set_wakeup_fd(woken)
        sender.close()
        thread.join()
        arrivals.close()
