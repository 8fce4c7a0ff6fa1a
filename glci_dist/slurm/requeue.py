"""One start of a job towards the scheduler: whether it is over, having the job queued again, saying why it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from glci_dist.checkpoints.manifest import resume_step
from glci_dist.config import ClusterConfig
from glci_dist.errors import Fault, UserError
from glci_dist.slurm.backends.choice import backend
from glci_dist.slurm.backends.scheduling import PREEMPTED
from glci_dist.slurm.notes import Notes, idle_starts

DEFERENCE_S = 15.0
"""That a node leaves to the one whose turn it is to ask."""
_PAUSE_S = 2.0


class JobStart:
    """A start of the job ``job``, its ``restart``-th, as one of its nodes, ``host``, sees it."""

    def __init__(self, run: Path, job: str, restart: int, host: str, cluster: ClusterConfig) -> None:
        self.run, self.job, self.restart, self.host, self.cluster = run, job, restart, host, cluster
        self.notes = Notes(run, job, restart, host)
        self.scheduler = backend(cluster.executor).scheduler
        """What knows of the job and can queue it again, if anything does."""

    def queue_again(self, why: str, *, asks: bool, warning: str = "", cause: str = "") -> str:
        """Have the job run again, if that is of use, and wait for its end. Raises ``Fault`` where it is of none.

        ``asks``: it is on this node to ask. ``warning``: why the scheduler had warned it. ``cause``: what else ended
        its processes, where their own words do not tell it.
        """
        if self.scheduler is None:
            self.write_verdict(why)
            raise Fault(why)
        # A signal may have come to this node alone, and the one whose turn it is waits for this one.
        if not asks and self.is_taken_away(within_s=DEFERENCE_S):
            return why
        cluster = self.cluster
        step = resume_step(self.run / "checkpoints")
        idle = 0 if warning == PREEMPTED else idle_starts(self.run, self.job, step=step, before=self.restart)
        refusal = ""
        if self.restart >= cluster.requeues:
            refusal = f"it was queued again {self.restart} times already (cluster.requeues)"
        elif idle >= cluster.idle_starts:
            refusal = f"{idle} starts in a row brought no checkpoint after step {step} (cluster.idle_starts)"
            if warning:
                refusal += (
                    f": is cluster.time_min={cluster.time_min} enough for the start, and cluster.signal_lead_s="
                    f"{cluster.signal_lead_s} for a save?"
                )
        if refusal:
            self.write_verdict(f"{why}, but {refusal}")
            raise Fault(f"{why}, but {refusal}")
        self.notes.again(step=step, why=why, warning=warning or cause)
        self.say(f"{why}; the job is queued again")
        self.persist(self.requeue)
        return self.wait_to_be_ended(why)

    def wait_to_be_ended(self, why: str) -> str:
        """Return when the scheduler has taken the job away, and need not kill this process to have its node."""
        if not self.is_taken_away():
            raise Fault(f"{why}; what was saved stays, submit again to go on")
        return why

    def is_taken_away(self, *, within_s: float | None = None) -> bool:
        """Wait for the scheduler to end this run of the job, a while or ``cluster.node_timeout_s``; whether it did."""
        if self.scheduler is None:
            return False
        deadline = time.monotonic() + (self.cluster.node_timeout_s if within_s is None else within_s)
        while True:
            with suppress(UserError):
                if self.has_ended():
                    return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(1)

    def has_ended(self) -> bool:
        """Whether this run of the job is over, for the scheduler. Raises ``UserError`` without its answer."""
        there = self.scheduler.queued(self.job) if self.scheduler is not None else None
        # Without this node it may run again already.
        return there is None or there.is_taken_away or there.restarts != self.restart

    def requeue(self) -> None:
        """Ask once. What this node was cut off from may have been asked by another, and the job run again."""
        if self.scheduler is not None and not self.has_ended():
            self.scheduler.requeue(self.job)

    def persist(self, ask: Callable[[], None]) -> None:
        """Ask the scheduler for something until it does it, or for ``cluster.node_timeout_s``; it may be busy."""
        deadline, told = time.monotonic() + self.cluster.node_timeout_s, ""
        while True:
            try:
                ask()
                return
            except UserError as problem:
                if str(problem) != told:
                    told = str(problem)
                    self.say(told)
            if time.monotonic() >= deadline:
                return
            time.sleep(_PAUSE_S)

    def write_verdict(self, reason: str, step: int = -1, *, samples: Sequence[str] = (), left_out: str = "") -> None:
        """Leave why the job ends where `glci status` finds it, and say it."""
        where = {"job": self.job, "restart": self.restart, "host": self.host, "time": round(time.time(), 3)}
        self.notes.verdict({**where, "step": step, "samples": samples, "reason": reason, "left_out": left_out})
        shown = f"; samples of step {step}: {', '.join(samples)}" if samples else ""
        self.say(f"fault: {reason}{shown}")

    def say(self, line: str) -> None:
        """Say something in the job's output."""
        print(f"glci: job {self.job}, restart {self.restart}, {self.host}: {line}", flush=True)
