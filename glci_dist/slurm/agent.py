"""torch's elastic agent for the workers of a node, with the few decisions that it leaves open.

It restarts the workers inside the allocation when one of them crashed, as torchrun does. But an exit that means
"do not" (a mistake of the user, a newer attempt) ends it at once, a signal is passed on to the workers and not
taken for a crash, and a run that crashes too often, or in the same step every time, is given up. Where all crashes
in a row began on one node, that node is bad, and not the run.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from glci_dist.cluster.elastic import FailureRole, read_step_file
from glci_dist.cluster.signals import not_ignored
from glci_dist.config import ClusterConfig
from glci_dist.errors import STOP_SIGNALS, ExitCode
from glci_dist.slurm import task
from glci_dist.slurm.asking import last_line
from glci_dist.slurm.requeue import JobStart

_FINAL = (ExitCode.REFUSED, ExitCode.SUPERSEDED)
"""Exit codes of the workers that no restart would change."""
_BY_ITSELF = 1
"""The last of the ranks of a cause (``order_of_cause``) that did not follow from another's."""
_START_S, _DEFERENCE_S, _CLAIM_S = 5.0, 10.0, 2.0


@dataclass(frozen=True)
class Crash:
    """One crash of the workers, as this node sees it."""

    time: float
    step: int
    """-1: before the first."""
    cause: str
    began_on: tuple[str, ...]
    """The nodes whose workers failed by themselves, and not for want of another rank."""


def bad_node(crashes: list[Crash], cluster: ClusterConfig) -> str | None:
    """The node that these crashes are to be blamed on, if it is one and not the step."""
    row = crashes[-cluster.node_crashes :] if cluster.node_crashes else []
    if not row or len(row) < cluster.node_crashes or row[-1].time - row[0].time > cluster.restart_window_s:
        return None
    origins, steps = {crash.began_on for crash in row}, {crash.step for crash in row}
    is_the_step = len(steps) == 1 and steps != {-1}
    return row[-1].began_on[0] if len(origins) == len(row[-1].began_on) == 1 and not is_the_step else None


def verdict(crashes: list[Crash], cluster: ClusterConfig) -> str | None:
    """Why the workers are not started again after these crashes, if they are not."""
    last = crashes[-1]
    row = sum(1 for _ in takewhile(lambda crash: crash.step == last.step, reversed(crashes)))
    if row >= cluster.same_step:
        where = f"in step {last.step}" if last.step >= 0 else "before its first step"
        return f"it crashed {row} times in a row {where}"
    window_s, restarts = cluster.restart_window_s, cluster.restarts
    recent = [crash for crash in crashes if last.time - crash.time <= window_s]
    if len(recent) > restarts:
        return f"it crashed {len(recent)} times within {window_s:.0f} s (cluster.restarts={restarts})"
    return None


class StoppedBeforeStart(Exception):
    """A signal came while no worker ran."""


class Agent(LocalElasticAgent):
    """Runs and restarts the workers of this node; ``run()`` as its base class has it."""

    def __init__(
        self, *args: Any, start: JobStart, hosts: Sequence[str], leave_out: Callable[[str], bool], **kwargs: Any
    ) -> None:
        """``hosts``: of all agents that meet; this one's is ``start.host``.

        ``leave_out`` is called with the reason where this node is bad; returns whether the job goes on without it.
        """
        super().__init__(*args, **kwargs)
        self._notes, self._cluster, self._host = start.notes, start.cluster, start.host
        self._hosts, self._leave_out = tuple(hosts), leave_out
        self._stores: list[Any] = []
        """Of the starts that ended in a crash: what the agents say to one another."""
        self.crashes: list[Crash] = []
        self.signal: signal.Signals | None = None
        """The first that came."""
        self.is_told_to_end = False
        """Whether SIGTERM came, first or later: the scheduler ends the job itself."""
        self.ending: str | None = None
        """Why the workers were not started again."""
        self.is_left_out = False
        """Whether that is because the job goes on without this node."""
        self._is_starting = False
        self._is_over = False
        # The base class takes these to kill the workers by.
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
        self.take_signals()

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        """Run the workers; from its end on signals are only remembered."""
        try:
            # Those that waited while this process started.
            task.release()
            return super().run(role)
        finally:
            self._is_over = True
            self.take_signals()

    def take_signals(self) -> None:
        """Have signals to this process passed on to its workers, and remembered; those that it ignores stay so."""
        for number in not_ignored(STOP_SIGNALS):
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        self.is_told_to_end = self.is_told_to_end or number == signal.SIGTERM
        if self._is_over or self._is_starting:
            return
        pids = self._pcontext.pids().values() if self._pcontext is not None else ()
        _kill(pids, number)
        if not pids:
            raise StoppedBeforeStart

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self.signal is not None:
            raise StoppedBeforeStart
        self._is_starting = True
        try:
            pids = super()._start_workers(worker_group)
        finally:
            self._is_starting = False
        if self.signal is not None:
            # It came when some of them were there, perhaps.
            _kill(pids.values(), self.signal)
        return pids

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        if self.signal is not None:
            # It came between the workers' end and their next start.
            raise StoppedBeforeStart
        super()._rendezvous(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        super()._stop_workers(worker_group)
        self._pcontext = None

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ended = self._ended()
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            # Beside their error files the workers noted their steps; a failure does not say it of one that was killed.
            there = getattr(self._pcontext, "error_files", {}).values()
            files = [*map(str, there), *(failure.error_file for failure in result.failures.values())]
            step = max(map(read_step_file, files))
            self.ending = self._judge(without_own_kills(result.failures, ended), step)
            if self.ending is not None:
                # The base class goes on as long as there are some left.
                self._remaining_restarts = 0
        return result

    def _ended(self) -> set[int]:
        """The pids of workers that have ended. Once one has failed, the base class ends the others itself."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return {handler.proc.pid for handler in handlers.values() if handler.proc.poll() is not None}

    def _judge(self, failures: Mapping[int, ProcessFailure], step: int) -> str | None:
        if self.signal is not None:
            return f"stopped by {self.signal.name}"
        final = next((failure for failure in failures.values() if failure.exitcode in _FINAL), None)
        if final is not None:
            return str(final.message)
        rank, first = min(failures.items(), key=lambda each: order_of_cause(each[1]))
        if all(failure.exitcode == ExitCode.STOPPED for failure in failures.values()):
            return None
        # The last line of a traceback is the exception.
        who, what = f"rank {rank} on {self._host}", last_line(str(first.message), "nothing was said")
        cause = what if what.startswith(who) else f"{who}: {what}"
        crash = Crash(time.time(), step, cause, ())
        self.crashes.append(crash)
        self._stores.append(self._worker_group.store)
        began_here = order_of_cause(first)[0] <= _BY_ITSELF
        if began_here:
            # For the other agents.
            with suppress(RuntimeError):
                self._stores[-1].set(_claim_of(self._host), "1")
        if began_here or not self._is_claimed():
            self._notes.crash(time=crash.time, step=step, cause=cause)
        if step < 0:
            # Perhaps the others fail too, and not for want of this node.
            time.sleep(_START_S)
        self.crashes = [
            replace(crash, began_on=self._claims(store))
            for crash, store in zip(self.crashes, self._stores, strict=True)
        ]
        if bad_node(self.crashes, self._cluster) == self._host:
            reason = f"{self._cluster.node_crashes} crashes in a row began on {self._host}; the last: {cause}"
            self.is_left_out = self._leave_out(reason)
            if self.is_left_out:
                return reason
        why = verdict(self.crashes, self._cluster)
        if why is None:
            return None
        if not began_here:
            # The node where it began says more of it, and ends the job.
            time.sleep(_DEFERENCE_S)
        return f"{why}; the cause: {cause}"

    def _is_claimed(self) -> bool:
        """Whether a node says within a while that this crash began there; of one that hangs none does."""
        deadline = time.monotonic() + _CLAIM_S
        while not (claims := self._claims(self._stores[-1])) and time.monotonic() < deadline:
            time.sleep(_CLAIM_S / 20)
        return bool(claims)

    def _claims(self, store: Any) -> tuple[str, ...]:
        """The nodes that a crash began on; none where the first node's agent is gone."""
        with suppress(RuntimeError):
            return tuple(host for host in self._hosts if store.check([_claim_of(host)]))
        return ()


def _kill(pids: Collection[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _claim_of(host: str) -> str:
    return f"crash-began-on/{host}"


def without_own_kills(failures: Mapping[int, ProcessFailure], ended: Collection[int]) -> Mapping[int, ProcessFailure]:
    """Failures but for the workers that the agent killed after another had failed, and that did not answer SIGTERM.

    ``ended``: the pids of those that had ended before; where none was seen to, nothing is left out.
    """
    own = [rank for rank, each in failures.items() if each.exitcode == -signal.SIGKILL and each.pid not in ended]
    return {rank: each for rank, each in failures.items() if not (ended and rank in own)} or failures


def order_of_cause(failure: ProcessFailure) -> tuple[int, int]:
    """Less for what is rather a cause: what a rank says of itself, then a kill, then what follows from another's."""
    # Nothing, if it was killed or died of something else than an exception.
    part = failure.error_file_data.get("part")
    if failure.exitcode in (-signal.SIGTERM, ExitCode.STOPPED):
        # By the agent, because of another.
        place = 4
    elif part is not None:
        place = {FailureRole.BROKE: 0, FailureRole.WAITED: 2, FailureRole.LOST: 3}[FailureRole(part)]
    else:
        # NCCL aborts a rank that waits for one that is gone.
        place = 3 if failure.exitcode == -signal.SIGABRT else _BY_ITSELF
    return (place, failure.timestamp)
