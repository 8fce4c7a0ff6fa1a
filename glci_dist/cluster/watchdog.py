"""Ends a rank that waits too long in a collective, and reports which rank it waited for, where and how long.

Each rank writes its progress (``collectives.ProgressMark``) to the launcher's store every second. A collective that one
rank never enters blocks all the others; on a time-out a rank reads everybody's progress from the store.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch.distributed as dist

from glci_dist import output
from glci_dist.cluster.collectives import ProgressMark, progress
from glci_dist.cluster.elastic import FailureRole, write_error_file

_TICK_S = 1.0
_ANSWER_S = 5.0
_SIGN_S = 3.0
"""A live process writes its progress at least this often."""
_Sign = dict[str, object] | None


class Watchdog:
    """A thread that checks the training thread's progress once a second."""

    def __init__(self, *, rank: int, size: int, host: str, timeout_s: float) -> None:
        self._rank, self._size, self._host, self._timeout_s = rank, size, host, timeout_s
        self._asking: threading.Thread | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        if size > 1:
            self._store = _connect()
            # Reading waits for an answer and holds its connection: on one of its own it never keeps a sign from being
            # written, which would stop this thread for good.
            self._reader = _connect()
            # At once, so that a rank that hangs within its first second is named with its host.
            self._write_sign(progress())
            self._thread.start()

    def every_second(self, task: Callable[[], None]) -> None:
        """Call ``task`` once a second in a thread of its own, so that a slow or failing disk delays nothing else."""

        def run() -> None:
            while not self._ended.wait(_TICK_S):
                with suppress(OSError):
                    task()

        threading.Thread(target=run, name="every-second", daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_ANSWER_S)

    def _run(self) -> None:
        told = 0.0
        while not self._ended.wait(_TICK_S):
            here = progress()
            self._write_sign(here)
            now = time.monotonic()
            if here.has_timeout and now - max(here.since, told) > self._timeout_s:
                self._end_if_stuck(here, now - here.since)
                told = time.monotonic()

    def _write_sign(self, here: ProgressMark) -> None:
        sign = {**asdict(here), "host": self._host, "signs": time.monotonic()}
        with suppress(RuntimeError):
            self._store.set(_key(self._rank), json.dumps(sign))

    def _end_if_stuck(self, here: ProgressMark, waited: float) -> None:
        """End this process, unless all ranks that it waits for are alive and may take any time."""
        first = self._read_all()
        time.sleep(_SIGN_S)
        second = self._read_all()
        if progress().since != here.since or self._ended.is_set():
            return
        where = f"{here.name} of step {here.step}" if here.step >= 0 else here.name
        doing = "waited" if here.is_collective else "did not get beyond"
        behind = missing_ranks(here, self._rank, first, second)
        waiting = f"rank {self._rank} on {self._host} {doing} {waited + _SIGN_S:.0f} s in {where}"
        if behind and all(each.is_unbounded for each in behind):
            output.say(f"glci: {waiting} and goes on waiting: {describe_missing(behind)}")
            return
        why = f"{waiting}, more than engine.timeout_s={self._timeout_s:g}: {describe_missing(behind)}"
        write_error_file(why, FailureRole.WAITED if here.is_collective else FailureRole.BROKE)
        output.say(f"glci: fault: {why}; the same command goes on from the last checkpoint")
        os._exit(1)

    def _read_all(self) -> list[_Sign]:
        """Each rank's last progress; None where the store has none, or does not answer."""
        found: list[_Sign] = [None] * self._size

        def ask() -> None:
            for rank in range(self._size):
                with suppress(RuntimeError):
                    if self._reader.check([_key(rank)]):
                        found[rank] = json.loads(self._reader.get(_key(rank)))

        # A store in a stopped process never answers.
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=ask, daemon=True)
            self._asking.start()
            self._asking.join(_ANSWER_S)
        return list(found)


@dataclass(frozen=True)
class MissingRank:
    """A rank that has not entered the collective in which another one waits."""

    rank: int
    what: str
    """Its host and last progress, for messages."""
    is_unbounded: bool
    """It is alive, and its work may take any time (``collectives.mark_progress``)."""


def missing_ranks(here: ProgressMark, rank: int, first: Sequence[_Sign], second: Sequence[_Sign]) -> list[MissingRank]:
    """The ranks that have not entered the collective in which ``rank`` waits, from two samples of all progress."""
    behind = []
    for other, (before, now) in enumerate(zip(first, second, strict=True)):
        if other == rank:
            continue
        if now is None:
            behind.append(MissingRank(other, "(no word of it in the launcher's store)", False))
            continue
        at = f"{now['name']} of step {now['step']}"
        if before is not None and before["signs"] == now["signs"]:
            behind.append(MissingRank(other, f"on {now['host']} (no sign of life, last in {at})", False))
        elif int(str(now["count"])) < here.count:
            behind.append(MissingRank(other, f"on {now['host']} (alive, in {at})", bool(now["is_unbounded"])))
    return behind


def describe_missing(behind: Sequence[MissingRank]) -> str:
    """The missing ranks, for a message."""
    if not behind:
        return "every other rank is there too: look at the network between the hosts"
    return "not there: " + ", ".join(f"rank {each.rank} {each.what}" for each in behind)


def _connect() -> dist.Store:
    """A separate connection to the launcher's store, as the process group's may be blocked."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=_ANSWER_S),
    )


def _key(rank: int) -> str:
    return f"glci/place/{rank}"
