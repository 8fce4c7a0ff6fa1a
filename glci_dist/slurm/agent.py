"""torch's elastic agent for the workers of a node, with the few decisions that it leaves open.

It restarts the workers inside the allocation when one of them crashed, as torchrun does. But an exit that means
"do not" (a mistake of the user, a newer attempt) ends it at once, a signal is passed on to the workers and not
taken for a crash, and a run that crashes too often, or in the same step every time, is given up.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FINAL = (2, 4)
"""Exit codes of the workers that no restart would change."""
_STOPPED = 3


@dataclass(frozen=True)
class Crash:
    """One crash of this node's workers."""

    time: float
    step: int
    """-1: before the first, or not known."""
    cause: str
    codes: tuple[int, ...]


@dataclass(frozen=True)
class Bounds:
    """How often workers are restarted: ``cluster.restarts``, ``restart_window_s``, ``same_step``."""

    restarts: int
    window_s: float
    same_step: int

    def verdict(self, crashes: list[Crash]) -> str | None:
        """Why the workers are not started again after these crashes, if they are not."""
        last = crashes[-1]
        row = 0
        for crash in reversed(crashes):
            if crash.step != last.step:
                break
            row += 1
        if row >= self.same_step:
            where = f"in step {last.step}" if last.step >= 0 else "before its first step"
            return f"it crashed {row} times in a row {where}"
        recent = [crash for crash in crashes if last.time - crash.time <= self.window_s]
        if len(recent) > self.restarts:
            return f"it crashed {len(recent)} times within {self.window_s:.0f} s (cluster.restarts={self.restarts})"
        return None


class Stopped(Exception):
    """A signal came while no worker ran."""


class Agent(LocalElasticAgent):
    """Runs and restarts the workers of this node; ``run()`` as its base class has it."""

    def __init__(self, *args: Any, bounds: Bounds, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = bounds
        self.crashes: list[Crash] = []
        self.signal: signal.Signals | None = None
        """The first that came."""
        self.is_told_to_end = False
        """Whether SIGTERM came, first or later: the scheduler ends the job itself."""
        self.ending: str | None = None
        """Why the workers were not started again."""
        self._is_over = False
        self.take_signals()

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        """Run the workers; from its end on signals are only remembered."""
        try:
            return super().run(role)
        finally:
            self._is_over = True
            self.take_signals()

    def take_signals(self) -> None:
        """Have signals to this process passed on to its workers, and remembered."""
        for number in SIGNALS:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        self.is_told_to_end = self.is_told_to_end or number == signal.SIGTERM
        if self._is_over:
            return
        pids = self._pcontext.pids().values() if self._pcontext is not None else ()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if not pids:
            raise Stopped

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self.signal is not None:
            raise Stopped
        pids = super()._start_workers(worker_group)
        # Starting them took the signals for the base class, which would kill them.
        self.take_signals()
        return pids

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        super()._stop_workers(worker_group)
        self._pcontext = None

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            self.ending = self._judge(result.failures)
            if self.ending is not None:
                # The base class goes on as long as there are some left.
                self._remaining_restarts = 0
        return result

    def _judge(self, failures: Mapping[int, ProcessFailure]) -> str | None:
        codes = tuple(failure.exitcode for failure in failures.values())
        if self.signal is not None:
            return f"stopped by {self.signal.name}"
        found = [failure for failure in failures.values() if failure.exitcode in _FINAL]
        if found:
            return str(found[0].message)
        first = min(failures.values(), key=_rank_of_cause)
        step = max(int(failure.error_file_data.get("step", -1)) for failure in failures.values())
        if not all(code == _STOPPED for code in codes):
            self.crashes.append(Crash(time.time(), step, _short(str(first.message)), codes))
        verdict = self._bounds.verdict(self.crashes) if self.crashes else None
        return f"{verdict}; the cause: {self.crashes[-1].cause}" if verdict else None


def _rank_of_cause(failure: ProcessFailure) -> tuple[int, int]:
    """Less for what is rather a cause: what a rank says of itself, then a kill, then what follows from another's."""
    said = bool(failure.error_file_data.get("step") is not None)
    follows = said and "lost another rank" in str(failure.message)
    ended_by_agent = failure.exitcode in (-signal.SIGTERM, _STOPPED)
    return (3 if ended_by_agent else 2 if follows else 0 if said else 1, failure.timestamp)


def _short(message: str) -> str:
    """A message's last line, which in a traceback is the exception."""
    lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"
