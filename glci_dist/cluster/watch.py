"""Ends a rank that waits too long for another, and says for which one, where and since when.

Each rank tells the launcher's store every second where it is (``collectives.Place``). A collective that
some rank never comes to holds all the others; the one that looks first reads where each of them is.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from glci_dist import output
from glci_dist.cluster.collectives import Place, place
from glci_dist.cluster.environment import Part, tell_cause

_TICK_S = 1.0
_ANSWER_S = 5.0
_SIGN_S = 3.0
"""A process that runs tells where it is at least this often."""


class Watch:
    """A thread that looks once a second at where the training thread is."""

    def __init__(self, *, rank: int, size: int, host: str, timeout_s: float) -> None:
        self._rank, self._size, self._host, self._timeout_s = rank, size, host, timeout_s
        self._store = _connect() if size > 1 else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def every_second(self, task: Callable[[], None]) -> None:
        """Call ``task`` once a second from now on; a disk that keeps it waiting, or fails, keeps nobody else."""

        def run() -> None:
            while not self._ended.wait(_TICK_S):
                with suppress(OSError):
                    task()

        threading.Thread(target=run, name="every-second", daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(_ANSWER_S)

    def _run(self) -> None:
        told = 0.0
        while not self._ended.wait(_TICK_S):
            here = place()
            if self._store is None:
                continue
            with suppress(RuntimeError):
                self._store.set(_key(self._rank), self._describe(here))
            now = time.monotonic()
            if here.is_bounded and now - max(here.since, told) > self._timeout_s:
                self._look_around(here, now - here.since)
                told = time.monotonic()

    def _look_around(self, here: Place, waited: float) -> None:
        """End this process, unless those that it waits for are alive and said that it takes them long."""
        first = self._ask()
        time.sleep(_SIGN_S)
        second = self._ask()
        if place().since != here.since or self._ended.is_set():
            return
        where = f"{here.name} of step {here.step}" if here.step >= 0 else here.name
        doing = "waited" if here.is_collective else "did not get beyond"
        behind = missing(here, self._rank, first, second)
        waiting = f"rank {self._rank} on {self._host} {doing} {waited + _SIGN_S:.0f} s in {where}"
        if behind and all(each.is_patient for each in behind):
            output.say(f"glci: {waiting} and goes on waiting: {blame(behind)}")
            return
        why = f"{waiting}, more than engine.timeout_s={self._timeout_s:g}: {blame(behind)}"
        tell_cause(why, Part.WAITED if here.is_collective else Part.BROKE)
        output.say(f"glci: fault: {why}; the same command goes on from the last checkpoint")
        os._exit(1)

    def _describe(self, here: Place) -> str:
        return json.dumps(
            {
                "host": self._host,
                "step": here.step,
                "name": here.name,
                "count": here.count,
                "is_patient": here.is_patient,
                "signs": time.monotonic(),
            }
        )

    def _ask(self) -> list[dict[str, object] | None]:
        """What each rank last said; None where the store has nothing of it, or does not answer."""
        found: list[dict[str, object] | None] = [None] * self._size

        def ask() -> None:
            assert self._store is not None
            for rank in range(self._size):
                with suppress(RuntimeError):
                    if self._store.check([_key(rank)]):
                        found[rank] = json.loads(self._store.get(_key(rank)))

        # The store may lie in a process that was stopped: then it never answers.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_ANSWER_S)
        return list(found)


@dataclass(frozen=True)
class Missing:
    """A rank that did not come to where another one waits."""

    rank: int
    what: str
    """What is known of it, with its host."""
    is_patient: bool
    """It is alive, and said that what it does may take long."""


def missing(
    here: Place,
    rank: int,
    first: Sequence[dict[str, object] | None],
    second: Sequence[dict[str, object] | None],
) -> list[Missing]:
    """Which ranks did not come to where ``rank`` waits, from two looks at what all of them say."""
    behind = []
    for other, (before, now) in enumerate(zip(first, second, strict=True)):
        if other == rank:
            continue
        if now is None:
            behind.append(Missing(other, "(no word of it in the launcher's store)", False))
            continue
        at, is_quiet = f"{now['name']} of step {now['step']}", before is not None and before["signs"] == now["signs"]
        if is_quiet:
            behind.append(Missing(other, f"on {now['host']} (no sign of life, last in {at})", False))
        elif int(str(now["count"])) < here.count:
            behind.append(Missing(other, f"on {now['host']} (alive, in {at})", bool(now["is_patient"])))
    return behind


def blame(behind: Sequence[Missing]) -> str:
    """The ranks that are waited for, in words."""
    if not behind:
        return "every other rank is there too: look at the network between the hosts"
    return "not there: " + ", ".join(f"rank {each.rank} {each.what}" for each in behind)


def _connect() -> dist.Store:
    """A connection of its own to the store of the launcher: the process group's may be waiting for something."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=_ANSWER_S),
    )


def _key(rank: int) -> str:
    return f"glci/place/{rank}"
