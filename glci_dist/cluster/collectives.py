"""Progress of the training thread: the collective or work that it is in, for the watchdog, and time in collectives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass
class ProgressMark:
    """Where the training thread of this process is."""

    step: int = -1
    """-1: before the first."""
    name: str = "start"
    """The collective that it is in, or the last work that it began."""
    count: int = 0
    """Collectives entered so far: equal on all ranks that are at the same point."""
    since: float = 0.0
    """Start of it (``time.monotonic``)."""
    is_collective: bool = False
    has_timeout: bool = False
    """Whether ``engine.timeout_s`` holds for it: a collective, or what follows one (where a GPU is waited for)."""
    is_unbounded: bool = False
    """Whether the other ranks wait without bound while this process is alive, as for a slow disk."""
    seconds: float = 0.0
    """Host seconds in collectives since the last ``pop_collective_seconds`` (GPUs: launching them)."""


_progress = ProgressMark(since=time.monotonic())


@contextmanager
def collective(name: str) -> Iterator[None]:
    """The block is a collective: it ends when every rank has entered it (every one of its process group)."""
    _progress.count += 1
    start = _set(name, is_collective=True, has_timeout=True)
    yield
    # Not in a finally: after an error the thread still counts as being in the collective.
    _progress.seconds += time.monotonic() - start
    _set(f"after {name}", is_collective=False, has_timeout=True)


def mark_progress(name: str, *, step: int | None = None, unbounded: bool = False) -> None:
    """Mark the start of work outside of collectives that may take long, such as loading a batch or setting up.

    ``unbounded``: the other ranks wait without bound while this process is alive, not only ``engine.timeout_s``. The
    next collective must then be one of host values (``World.all_gather_objects`` and its like), which waits as long.
    """
    if step is not None:
        _progress.step = step
    _set(name, is_collective=False, has_timeout=False, is_unbounded=unbounded)


def progress() -> ProgressMark:
    """A copy of the current progress."""
    return replace(_progress)


def pop_collective_seconds() -> float:
    """Host seconds spent in collectives since the last call (GPUs: launching them)."""
    seconds, _progress.seconds = _progress.seconds, 0.0
    return seconds


def _set(name: str, *, is_collective: bool, has_timeout: bool, is_unbounded: bool = False) -> float:
    # The time first: a reader in another thread must not combine the new name with the old start.
    _progress.since = time.monotonic()
    _progress.name, _progress.is_collective = name, is_collective
    _progress.has_timeout, _progress.is_unbounded = has_timeout, is_unbounded
    return _progress.since
