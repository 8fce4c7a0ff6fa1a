"""What is true of a run just now, from its own folder and from the scheduler, where the two tell different halves.

The folder knows steps and checkpoints, but nothing of a job that waits in the queue, nor why a process that was
killed was killed. The scheduler knows that, and forgets it after a while.
"""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from glci_dist.checkpoints.manifest import folder_name, newest_complete
from glci_dist.errors import UserError
from glci_dist.runs.journal import last_saved, read_journal
from glci_dist.runs.ledger import Account, AttemptAccount, account
from glci_dist.slurm import notes
from glci_dist.slurm.backends.base import Submitted
from glci_dist.slurm.backends.choice import backend
from glci_dist.slurm.backends.scheduling import Queued, Ran, Scheduler
from glci_dist.slurm.jobs import submitted

_WHY = {
    "NODE_FAIL": "a node of its job failed",
    "PREEMPTED": "its job was preempted",
    "REQUEUED": "its job was put into the queue again",
    "TIMEOUT": "its job's time was over",
    "CANCELLED": "its job was cancelled",
    "OUT_OF_MEMORY": "its job ran out of memory",
}

_CLOCKS_S = 2.0
"""By which the clocks of nodes and controller may differ."""


@dataclass(frozen=True)
class RunStatus:
    """A run as it stands."""

    state: str
    """submitted, queued, starting, running, ending, stopped, died, cancelled, failed, done; unknown without SLURM."""
    detail: str
    """Why, on what, until when; in words."""
    saved: int
    """The step that it would go on from."""
    account: Account
    """Its attempts, with what the scheduler knows of their ends."""
    starts: tuple[StartWithoutAttempt, ...]
    """Runs of its jobs that ended before their workers could begin an attempt."""
    job: Submitted | None
    missing: str = ""
    """Which newer checkpoints than ``saved`` are gone or damaged, and what that leaves to go on from, in words."""


@dataclass(frozen=True)
class StartWithoutAttempt:
    """A run of a job through the scheduler that came to no attempt."""

    job: str
    restart: int
    nodes: str
    began: float
    ended: float
    """Both are seconds since 1970."""
    reason: str


def read_status(run: Path) -> RunStatus:
    """How a run stands. Raises ``UserError`` where it was never started nor submitted."""
    jobs = submitted(run)
    job = jobs[-1] if jobs else None
    found = account(run)
    if not found.attempts and job is None:
        raise UserError(f"{run} was never started: start it with glci train or glci submit")
    chosen, trouble = None, ""
    if job is not None:
        try:
            chosen = backend(job.executor)
        except UserError as error:
            # What the run's folder says is still true.
            trouble = f"job {job.job}: {error}"
    scheduler = chosen.scheduler if chosen is not None else None
    if scheduler is not None and not scheduler.is_there():
        scheduler = None
    told = _SchedulerCache(run, scheduler, {each.job: each.time for each in jobs if each.executor == jobs[-1].executor})
    following = (*found.attempts[1:], None)
    attempts = tuple(_explained(each, after, told) for each, after in zip(found.attempts, following, strict=False))
    state, detail = _state(attempts, job if scheduler is not None else None, told)
    if job is not None and chosen is not None and not (attempts and attempts[-1].began > job.time):
        # The job has come to no attempt of its own.
        state, detail = chosen.state_before_attempt(job) or (state, detail)
    detail = "; ".join(filter(None, (detail, trouble)))
    starts = tuple(start for each in jobs for start in _without_attempt(each.job, attempts, told))
    saved, missing = _saved(run)
    return RunStatus(state, detail, saved, Account(attempts), starts, job, missing)


def _saved(run: Path) -> tuple[int, str]:
    """The step that the run would go on from, by the checkpoints that are there, and which newer ones are not."""
    checkpoint, broken = newest_complete(run / "checkpoints")
    step = checkpoint.step if checkpoint is not None else 0
    told = [f"{path.name} is damaged ({problem})" for path, problem in broken]
    wanted = last_saved(read_journal(run))
    if wanted is not None and wanted > step and not any(path.name == folder_name(wanted) for path, _ in broken):
        told.insert(0, f"the checkpoint of step {wanted} is not there any more")
    if not told:
        return step, ""
    if checkpoint is not None:
        left = f"the newest that stands is of step {step}"
    elif broken:
        left = "none stands, and the run does not start until they are mended or removed"
    else:
        left = "none stands, the run would start anew"
    return step, f"{'; '.join(told)}: {left}"


class _SchedulerCache:
    """What the scheduler says of a run's jobs, asked once each."""

    def __init__(self, run: Path, scheduler: Scheduler | None, jobs: Mapping[str, float]) -> None:
        """``scheduler``: None where none is to be asked. ``jobs``: when each was submitted."""
        self.run, self._scheduler, self._jobs = run, scheduler, jobs
        self._silence: UserError | None = None
        self.history = functools.cache(self._history)
        self.queued = functools.cache(self._in_queue)

    def _history(self, job: str) -> Sequence[Ran]:
        # Without its accounting, what the run's folder and the queue say is still true.
        with suppress(UserError):
            if self._scheduler is not None and job in self._jobs:
                return self._scheduler.history(job, since=self._jobs[job])
        return []

    def _in_queue(self, job: str) -> Queued | None:
        """The job as the controller has it. Raises ``UserError`` without its answer, for which it waits once."""
        if self._scheduler is None or job not in self._jobs:
            return None
        if self._silence is not None:
            raise self._silence
        try:
            return self._scheduler.queued(job)
        except UserError as silence:
            self._silence = silence
            raise

    def runs(self, job: str) -> list[tuple[int, Ran]]:
        """Every run of the job that the accounting knows, with the number of the restart that it was."""
        history = self.history(job)
        there = None
        with suppress(UserError):
            there = self.queued(job)
        # It may have lost the first ones.
        lost = max(0, there.restarts - (len(history) - 1)) if there is not None else 0
        return list(enumerate(history, lost))

    def end_of(self, attempt: AttemptAccount) -> str | None:
        """Why the run of the job that an attempt was part of was ended."""
        return next((self.end(ran) for ran in self.history(attempt.job) if _holds(ran, attempt)), None)

    def end(self, ran: Ran) -> str | None:
        """Why a run of a job was ended."""
        if ran.state not in _WHY:
            return None
        lost: list[str] = []
        if ran.state == "NODE_FAIL" and self._scheduler is not None:
            with suppress(UserError):
                lost = self._scheduler.lost_nodes(ran)
        return f"{', '.join(lost)} was lost" if lost else f"{_WHY[ran.state]} (on {ran.nodes})"


def _holds(ran: Ran, attempt: AttemptAccount) -> bool:
    """Whether an attempt began in a run of its job. By its time: the accounting may have lost an earlier run."""
    return ran.began - _CLOCKS_S <= attempt.began <= ran.ended + _CLOCKS_S


def _without_attempt(
    job: str, attempts: Sequence[AttemptAccount], told: _SchedulerCache
) -> Iterator[StartWithoutAttempt]:
    for restart, ran in told.runs(job):
        if math.isinf(ran.began + ran.ended) or any(each.job == job and _holds(ran, each) for each in attempts):
            continue
        asked, _ = notes.asked_again(told.run, job, restart)
        reason = (
            _verdict(told.run, job, restart) or asked or told.end(ran) or f"its job ended {ran.state}: see its output"
        )
        yield StartWithoutAttempt(job, restart, ran.nodes, ran.began, ran.ended, reason)


def _explained(attempt: AttemptAccount, following: AttemptAccount | None, told: _SchedulerCache) -> AttemptAccount:
    """An attempt with the cause of its end, if anybody knows more of it than the run's own folder."""
    run, place = told.run, (attempt.job, attempt.restart)
    asked, warning = notes.asked_again(run, *place)
    if attempt.state == "stopped":
        # Without what to do now, which holds for the last one alone.
        said, why = attempt.reason.split(";")[0], warning or told.end_of(attempt)
        return replace(attempt, reason=f"{said}; {why}" if why else said)
    if attempt.state not in ("died", "failed") or not attempt.job:
        return attempt
    until = following.began if following is not None else math.inf
    crashes = (crash["cause"] for crash in notes.crashes(run, *place) if attempt.began <= crash["time"] < until)
    reason = next(crashes, None)
    if following is None or (following.job, following.restart) != place:
        # What ended this run of the job, and not only its workers.
        asked = f"{asked}; {reason}" if asked and reason else asked
        reason = _verdict(run, *place) or asked or told.end_of(attempt) or reason
    elif reason is None and attempt.state == "died":
        reason = "a rank crashed or was killed; the workers were started again"
    return replace(attempt, state="died", reason=reason) if reason else attempt


def _state(attempts: Sequence[AttemptAccount], job: Submitted | None, told: _SchedulerCache) -> tuple[str, str]:
    last = attempts[-1] if attempts else None
    if last is not None and last.state == "done":
        with suppress(UserError):
            there = told.queued(job.job) if job is not None else None
            if there is not None and not there.has_ended:
                return "done", f"its last job has not ended yet ({there.state})"
        return "done", ""
    if job is None or (last is not None and last.state == "running" and last.job != job.job):
        # Or it runs in another job than the last that it was submitted as, or in none.
        return (last.state, last.reason) if last is not None else ("submitted", "")
    try:
        there = told.queued(job.job)
    except UserError as silence:
        known = last.state if last is not None and last.state in ("running", "stopped") else "unknown"
        return known, f"job {job.job}: {silence}"
    history = told.runs(job.job)
    again = f", queued again {history[-1][0]} time(s)" if history and history[-1][0] else ""
    if there is not None and not there.has_ended:
        if there.state == "PENDING":
            start = f", expected to start {there.start}" if there.start not in ("N/A", "") else ""
            return "queued", f"job {job.job} waits ({there.reason}){start}{again}"
        if there.state == "COMPLETING":
            return "ending", f"job {job.job} on {there.nodes}{again}"
        if last is not None and last.state == "running":
            return "running", f"job {job.job} on {there.nodes}{again}"
        return "starting", f"job {job.job} on {there.nodes}{again}: its workers do not run yet"
    state = there.state if there is not None else history[-1][1].state if history else ""
    verdict = _verdict(told.run, job.job, history[-1][0] if history else None)
    if state == "CANCELLED":
        return "cancelled", f"job {job.job}; to go on: glci submit {shlex.join(job.overrides)}"
    if state:
        return "failed", f"job {job.job} ended {state}: {verdict or f'see {job.out}'}"
    if last is not None and last.state == "running":
        return "running", f"job {job.job}"
    return "died", verdict or f"the scheduler knows job {job.job} no more: submit again to go on"


def _verdict(run: Path, job: str, restart: int | None) -> str | None:
    """Why the launcher gave a job up, if it did."""
    found = notes.verdicts(run, job, restart) if job else []
    if not found:
        return None
    verdict = min(found, key=lambda each: float(each.get("time", math.inf)))
    samples = f" (samples {', '.join(verdict['samples'])})" if verdict.get("samples") else ""
    return f"on {verdict.get('host', '?')}: {verdict.get('reason', 'no reason given')}{samples}"
