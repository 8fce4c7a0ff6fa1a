"""Progress of the training thread: the collective or the work that it is in, for the watch, and time in collectives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass
class Place:
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
    is_bounded: bool = False
    """Whether ``engine.timeout_s`` holds for it: a collective, or what follows one (where a GPU is waited for)."""
    is_patient: bool = False
    """Whether the other ranks wait without bound while this process is alive, as for a slow disk."""
    seconds: float = 0.0
    """Host seconds in collectives since the last ``take_collective_seconds`` (GPUs: launching them)."""


_place = Place(since=time.monotonic())


@contextmanager
def collective(name: str) -> Iterator[None]:
    """The block is a collective: it ends when every rank has entered it."""
    _place.count += 1
    start = _come(name, is_collective=True, is_bounded=True)
    yield
    # Not in a finally: after an error the thread still counts as being in the collective.
    _place.seconds += time.monotonic() - start
    _come(f"after {name}", is_collective=False, is_bounded=True)


def begin(name: str, *, step: int | None = None, patient: bool = False) -> None:
    """Mark the start of work outside of collectives that may take long, such as loading a batch or setting up.

    ``patient``: the other ranks wait without bound while this process is alive, not only ``engine.timeout_s``. The
    next collective must then be one of host values (``World.to_all`` and its like), which waits as long.
    """
    if step is not None:
        _place.step = step
    _come(name, is_collective=False, is_bounded=False, is_patient=patient)


def place() -> Place:
    """A copy of the current progress."""
    return replace(_place)


def take_collective_seconds() -> float:
    """Host seconds spent in collectives since the last call (GPUs: launching them)."""
    seconds, _place.seconds = _place.seconds, 0.0
    return seconds


def _come(name: str, *, is_collective: bool, is_bounded: bool, is_patient: bool = False) -> float:
    # The time first: a reader in another thread must not combine the new name with the old start.
    _place.since = time.monotonic()
    _place.name, _place.is_collective = name, is_collective
    _place.is_bounded, _place.is_patient = is_bounded, is_patient
    return _place.since
