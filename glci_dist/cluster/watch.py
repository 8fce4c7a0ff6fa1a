"""Ends a rank that waits too long for another, and says for which one, where and since when.

Each rank tells the launcher's store every second where it is (``collectives.Place``). A collective that
some rank never comes to holds all the others; the one that looks first reads where each of them is.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from glci_dist.cluster.collectives import Place, place

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
        self._tasks: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def every_second(self, task: Callable[[], None]) -> None:
        """Call ``task`` once a second from now on, in the watch's thread."""
        self._tasks.append(task)

    def close(self) -> None:
        self._ended.set()
        self._thread.join(_ANSWER_S)

    def _run(self) -> None:
        while not self._ended.wait(_TICK_S):
            here = place()
            if self._store is not None:
                with suppress(RuntimeError):
                    self._store.set(_key(self._rank), self._describe(here))
            for task in list(self._tasks):
                task()
            waited = time.monotonic() - here.since
            if self._store is not None and here.is_bounded and waited > self._timeout_s:
                self._give_up(here, waited)

    def _give_up(self, here: Place, waited: float) -> None:
        first = self._ask()
        time.sleep(_SIGN_S)
        second = self._ask()
        if place().since != here.since or self._ended.is_set():
            return
        where = f"{here.name} of step {here.step}" if here.step >= 0 else here.name
        doing = "waited" if here.is_collective else "did not get beyond"
        print(
            f"glci: fault: rank {self._rank} on {self._host} {doing} {waited + _SIGN_S:.0f} s in {where}, more than "
            f"engine.timeout_s={self._timeout_s:g}: {blame(here, self._rank, first, second)}; "
            "the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    def _describe(self, here: Place) -> str:
        return json.dumps(
            {
                "host": self._host,
                "step": here.step,
                "name": here.name,
                "count": here.count,
                "is_collective": here.is_collective,
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


def blame(
    here: Place,
    rank: int,
    first: Sequence[dict[str, object] | None],
    second: Sequence[dict[str, object] | None],
) -> str:
    """Which ranks did not come to where ``rank`` waits, from two looks at what all of them say."""
    behind = []
    for other, (before, now) in enumerate(zip(first, second, strict=True)):
        if other == rank:
            continue
        if now is None:
            behind.append(f"rank {other} (no word of it in the launcher's store)")
            continue
        at = f"{now['name']} of step {now['step']}"
        if before is not None and before["signs"] == now["signs"]:
            behind.append(f"rank {other} on {now['host']} (no sign of life, last in {at})")
        elif int(str(now["count"])) < here.count:
            behind.append(f"rank {other} on {now['host']} (alive, in {at})")
    if not behind:
        return "every other rank is there too: look at the network between the hosts"
    return "not there: " + ", ".join(behind)


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
