"""What this process is doing for the others, by name: how long collectives took, and where it hangs if it does."""

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
    """The collective it is in, or the last thing that it began."""
    count: int = 0
    """Collectives that it entered: the same on all ranks that are at the same place."""
    since: float = 0.0
    """When it came there (``time.monotonic``)."""
    is_collective: bool = False
    is_bounded: bool = False
    """Whether it should be left soon: a collective, or what comes after one (a GPU is waited for there)."""
    is_patient: bool = False
    """Whether the others wait for it as long as it lives: for a slow disk, say."""
    seconds: float = 0.0
    """Host seconds in collectives since they were last taken (GPUs: launching them)."""


_place = Place(since=time.monotonic())


@contextmanager
def collective(name: str) -> Iterator[None]:
    """The block is a collective: it ends when every rank has come to it."""
    _place.count += 1
    start = _come(name, is_collective=True, is_bounded=True)
    yield
    # Where it raised, that is still where it was.
    _place.seconds += time.monotonic() - start
    _come(f"after {name}", is_collective=False, is_bounded=True)


def begin(name: str, *, step: int | None = None, patient: bool = False) -> None:
    """This process begins something by itself that may take long, such as taking a batch or setting up.

    ``patient``: the others shall wait for it as long as this process lives, not only ``engine.timeout_s``. They
    must then meet it next in a collective of host values (``World.to_all`` and its like), which waits as long.
    """
    if step is not None:
        _place.step = step
    _come(name, is_collective=False, is_bounded=False, is_patient=patient)


def place() -> Place:
    """Where the training thread is now; a copy, which does not move on with it."""
    return replace(_place)


def take_collective_seconds() -> float:
    """Host seconds spent in collectives since the last call (GPUs: launching them)."""
    seconds, _place.seconds = _place.seconds, 0.0
    return seconds


def _come(name: str, *, is_collective: bool, is_bounded: bool, is_patient: bool = False) -> float:
    # The time first: whoever looks in between must not take a long wait before this for one in it.
    _place.since = time.monotonic()
    _place.name, _place.is_collective = name, is_collective
    _place.is_bounded, _place.is_patient = is_bounded, is_patient
    return _place.since
