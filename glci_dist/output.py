"""Standard streams that never raise, so that a closed pipe or a full disk does not end a command.

``take_over`` replaces the standard streams. The first loss of each stream is recorded with its reason: a run writes it
into its journal, and the command line decides what it means for the exit code.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TextIO

_NAMES = ("stdin", "stdout", "stderr")
_FOR_EVER = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ENODEV, errno.ECONNRESET, errno.ESHUTDOWN)
"""Permanent errors of pipes, sockets and terminals."""
_CHUNK = 4096
"""Bytes that a writable pipe accepts without blocking (PIPE_BUF)."""


@dataclass(frozen=True)
class Loss:
    """Output that could not be written."""

    stream: str
    """stdout or stderr."""
    reason: str
    nobody_reads: bool
    """The reader left, or the stream was closed."""


_lock = threading.Lock()
_lost: dict[str, Loss] = {}
"""The first loss of each stream."""
_untold: list[Loss] = []
_patience_s: float | None = None


class _Guarded(io.FileIO):
    """A file descriptor; output that cannot be written is recorded as a loss and dropped."""

    def __init__(self, number: int, stream: str) -> None:
        super().__init__(number, "w", closefd=False)
        self._stream = stream
        self._is_stuck = False

    def write(self, data: Any, /) -> int:
        with memoryview(data) as view, view.cast("B") as left:
            size, place = left.nbytes, 0
            while place < size:
                try:
                    if not self._is_ready():
                        return self._lose(f"its reader takes nothing for {_patience_s:g} s", size)
                    place += super().write(left[place : place + _CHUNK]) or 0
                except OSError as error:
                    is_gone = error.errno in _FOR_EVER and not stat.S_ISREG(os.fstat(self.fileno()).st_mode)
                    if is_gone:
                        # For libraries and child processes that write to the descriptor directly.
                        _open_nowhere(self.fileno())
                    return self._lose(error.strerror or str(error), size, nobody_reads=is_gone)
        return size

    def _is_ready(self) -> bool:
        """Wait until the stream is writable, up to ``wait_at_most``; without waiting if the last wait failed."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        patience_s = 0.0 if self._is_stuck else _patience_s
        self._is_stuck = not poll.poll(None if patience_s is None else 1000 * patience_s)
        return not self._is_stuck

    def _lose(self, reason: str, size: int, *, nobody_reads: bool = False) -> int:
        _note(Loss(self._stream, reason, nobody_reads))
        return size


def take_over() -> None:
    """Replace this process's standard streams; call it before anything else is opened.

    A closed stream is opened on the null device. Otherwise the next file or socket would get its descriptor, and
    output of libraries would be written into it.
    """
    for number, name in enumerate(_NAMES):
        stream: TextIO | None = getattr(sys, name)
        is_there = os.path.exists(number)  # whether this descriptor is open
        if not is_there:
            _open_nowhere(number)
        if name == "stdin":
            sys.stdin = stream or open(number, closefd=False)  # noqa: SIM115
            continue
        if stream is None or not is_there:
            _note(Loss(name, "it was closed when the command began", nobody_reads=True))
        if stream is None and is_there:
            # The descriptor is already used by something else.
            number = os.open(os.devnull, os.O_WRONLY)
        setattr(sys, name, _guarded(number, name, stream))


def wait_at_most(seconds: float) -> None:
    """From now on, wait at most this long, once, for a reader that reads nothing, such as a paused terminal."""
    global _patience_s
    _patience_s = seconds


def flush() -> None:
    """Flush both streams, as far as possible."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()


def lost(stream: str) -> Loss | None:
    """The first loss of ``stdout`` or ``stderr``, if there was one so far."""
    return _lost.get(stream)


def take_losses() -> list[Loss]:
    """The losses since the last call, at most one per stream and process."""
    with _lock:
        untold = _untold.copy()
        _untold.clear()
    return untold


def say(line: str) -> None:
    """Print a line to stderr; never raises."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


def _note(loss: Loss) -> None:
    with _lock:
        if loss.stream not in _lost:
            _lost[loss.stream] = loss
            _untold.append(loss)


def _guarded(number: int, name: str, before: TextIO | None) -> TextIO:
    """A stream like ``before``, on file descriptor ``number``."""
    if isinstance(before, io.TextIOWrapper):
        with suppress(OSError):
            before.flush()
        encoding, errors, lines, at_once = before.encoding, before.errors, before.line_buffering, before.write_through
    else:
        encoding, errors, lines, at_once = "utf-8", "strict", name == "stderr", False
    raw = _Guarded(number, name)
    return io.TextIOWrapper(
        # As Python does: with -u unbuffered.
        raw if at_once else io.BufferedWriter(raw),
        encoding=encoding,
        # Characters that the terminal's encoding lacks are escaped.
        errors="backslashreplace" if errors == "strict" else errors,
        newline="\n",
        line_buffering=lines,
        write_through=at_once,
    )


def _open_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == number:
        os.set_inheritable(number, True)
        return
    os.dup2(nowhere, number)
    os.close(nowhere)
