"""The goodput ledger: where the wall time of a run went, over all its attempts.

Rank 0 of an attempt keeps account of its steps and says so once a second in ``alive.json`` of the attempt's
folder; after a kill that is the last that is known of it, to the second.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from glci_dist.runs import attempts
from glci_dist.runs.attempts import Attempt, parse_record
from glci_dist.runs.endings import STATES, cause_of, read_endings
from glci_dist.runs.events import AttemptEnded, CheckpointSaved, Event, Resumed, RolledBack, Started
from glci_dist.runs.journal import read_journal

KINDS = ("compute", "communication", "data", "checkpoint", "startup")
"""What an attempt's time goes into, up to its last step."""

_REST = {"running": "communication", "died": "lost", "failed": "lost", "stopped": "checkpoint", "done": "checkpoint"}
"""What an attempt did after the last step that it ended: waiting in the step in hand, or for the last save."""

_SILENT = "it said nothing more: killed, or its host was lost"
"""All that a run's own folder tells of an attempt that died."""

_QUIET_S = 10.0
"""An attempt that gave no sign for so long is dead."""


class StepTimes(Protocol):
    """What the ledger reads in a step's report: host seconds, means over ranks."""

    @property
    def data_seconds(self) -> float: ...
    @property
    def collective_seconds(self) -> float: ...
    @property
    def stall_seconds(self) -> float: ...


@dataclass
class LastSign:
    """What an attempt last said of itself."""

    time: float = 0.0
    """Seconds since 1970."""
    began: float = 0.0
    """When its process started."""
    step: int = 0
    """The next step to run."""
    steps: int = 0
    """Steps that it ran."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    """Of each kind, up to the last step's end."""


class Ledger:
    """Keeps an attempt's account, on rank 0. Written by one thread, said by another."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._sign = LastSign(time.time(), process_start())
        self._seen: float | None = None
        earlier = account(attempt.run, before=attempt.number)
        # The present attempt's start settles how many steps of the last one are lost.
        self._earlier = earlier.seconds()
        self._ended = earlier.attempts[-1].ended if earlier.attempts else self._sign.began

    def add_step(self, step: int, report: StepTimes) -> None:
        """Add step number ``step``, which has just been run."""
        sign, now = self._sign, time.time()
        if self._seen is None:
            # Of the first step only what it waited for can be told from the start-up.
            sign.seconds["startup"] = now - sign.began - report.data_seconds
            wall = report.data_seconds
        else:
            wall = now - self._seen
        waited = {
            "communication": report.collective_seconds if self._seen is not None else 0.0,
            "data": report.data_seconds,
            "checkpoint": report.stall_seconds,
        }
        for kind, value in waited.items():
            sign.seconds[kind] += value
        sign.seconds["compute"] += max(0.0, wall - sum(waited.values()))
        sign.steps, sign.step, self._seen = sign.steps + 1, step + 1, now

    def shares(self) -> dict[str, float]:
        """The share of each kind in the run's wall time so far, earlier attempts and the gaps between included."""
        seconds = dict(self._earlier)
        for kind, value in self._sign.seconds.items():
            seconds[kind] += value
        seconds["restart"] += max(0.0, self._sign.began - self._ended)
        return _shares(seconds)

    def write(self) -> None:
        """Say how far the attempt is; a disk that is full keeps the older word."""
        self._sign.time = time.time()
        aside = self._attempt.alive.with_suffix(".new")
        with suppress(OSError):
            aside.write_text(json.dumps(asdict(self._sign)), encoding="utf-8")
            os.replace(aside, self._attempt.alive)


@dataclass(frozen=True)
class AttemptAccount:
    """One attempt at a run, as far as it is known."""

    number: int
    hosts: tuple[str, ...]
    job: str
    """Number of the scheduler's job; empty outside of one."""
    restart: int
    """How often that job had been queued again."""
    ranks: int
    began: float
    ended: float
    """Its last sign of life; both are seconds since 1970."""
    resumed_at: int
    reached: int
    """The next step that it would have run."""
    lost_steps: int
    """Steps that it ran and that were run again."""
    seconds: dict[str, float]
    """Of each kind; ``lost`` is taken out of the others."""
    state: str
    """``running``, ``done``, ``stopped``, ``failed`` (it said why), ``died`` (it did not)."""
    reason: str
    """Why it stopped, failed or died, in words."""
    seconds_a_step: float


@dataclass(frozen=True)
class Account:
    """All attempts at a run."""

    attempts: tuple[AttemptAccount, ...]

    def seconds(self) -> dict[str, float]:
        """Wall seconds of each kind, ``lost`` steps and ``restart`` (between attempts) included."""
        total = dict.fromkeys((*KINDS, "lost", "restart"), 0.0)
        for attempt in self.attempts:
            for kind, value in attempt.seconds.items():
                total[kind] += value
        for one, following in itertools.pairwise(self.attempts):
            total["restart"] += max(0.0, following.began - one.ended)
        return total

    def shares(self) -> dict[str, float]:
        """The same as shares of their sum; ``compute`` is the goodput."""
        return _shares(self.seconds())


def account(run: Path, *, before: int | None = None) -> Account:
    """What is known of every attempt at ``run``, or of those with numbers less than ``before``."""
    events: dict[int, list[Event]] = defaultdict(list)
    for event in read_journal(run):
        events[event.attempt].append(event)
    starts = [(number, step) for number in sorted(events) if (step := _resumed_at(events[number])) is not None]
    numbers = attempts.numbers(run)
    found = []
    for number in numbers:
        if before is not None and number >= before:
            break
        following = next((step for later, step in starts if later > number), None)
        found.append(_one(Attempt(run, number), events[number], following, is_newest=number == numbers[-1]))
    return Account(tuple(found))


def process_start() -> float:
    """When this process started, seconds since 1970."""
    ticks = int(Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def _one(attempt: Attempt, events: Sequence[Event], following: int | None, *, is_newest: bool) -> AttemptAccount:
    lease = attempts.lease(attempt.run, attempt.number)
    said = parse_record(attempt.alive) or parse_record(attempt.over / attempt.alive.name)
    began = _number(lease.get("time"), events[0].time if events else 0.0)
    sign = _sign(said) if said else LastSign(began, began)
    resumed_at = _resumed_at(events) or 0
    # The journal may know more than the sign of the last second.
    reached = max([sign.step, resumed_at, *(event.step for event in events if isinstance(event, CheckpointSaved))])
    lost = max(0, reached - following) if following is not None else 0
    lost += sum(
        max(0, event.step + 1 - event.to) for event in events if isinstance(event, RolledBack) and event.to is not None
    )
    ended = max(sign.time, events[-1].time if events else began)
    worked = sum(sign.seconds[kind] for kind in ("compute", "communication", "data"))
    share = min(1.0, lost / sign.steps) if sign.steps else 0.0
    seconds = {
        kind: value * (1 - share if kind in ("compute", "communication", "data") else 1)
        for kind, value in sign.seconds.items()
    }
    state, reason = _end(attempt, events, ended, is_newest=is_newest)
    if is_newest and state == "died" and (process := _standing_still(lease)):
        state, reason = "running", f"process {process} stands still (Ctrl-Z?): `fg` or kill -CONT {process} goes on"
    seconds["lost"] = share * worked
    # After the last step that ended, or before the first.
    rest = max(0.0, ended - (sign.began or began) - sum(seconds.values()))
    if state == "running" and sign.steps:
        # What goes beyond an ordinary step it waits for somebody.
        in_hand = min(rest, worked / sign.steps)
        seconds["compute"] += in_hand
        rest -= in_hand
    seconds[_REST[state] if sign.steps else "startup"] += rest
    hosts = lease.get("hosts", lease.get("host", "?"))
    return AttemptAccount(
        number=attempt.number,
        hosts=tuple(map(str, hosts)) if isinstance(hosts, list) else (str(hosts),),
        job=str(lease.get("job", "")),
        restart=_whole(lease.get("restart")),
        ranks=_whole(lease.get("ranks")),
        began=sign.began or began,
        ended=ended,
        resumed_at=resumed_at,
        reached=reached,
        lost_steps=lost,
        seconds=seconds,
        state=state,
        reason=reason,
        seconds_a_step=worked / sign.steps if sign.steps else 0.0,
    )


def _resumed_at(events: Sequence[Event]) -> int | None:
    return next((event.step for event in events if isinstance(event, Started | Resumed)), None)


def _end(attempt: Attempt, events: Sequence[Event], ended: float, *, is_newest: bool) -> tuple[str, str]:
    for event in reversed(events):
        if isinstance(event, AttemptEnded):
            return STATES[event.name], event.reason or ""
    # What the journal's disk did not take, or what only another rank could say.
    left = read_endings(attempt)
    if 0 in left:
        return STATES.get(str(left[0].get("event")), "failed"), str(left[0].get("reason", ""))
    if is_newest and time.time() - ended < _QUIET_S:
        return "running", ""
    cause = cause_of(left)
    return ("failed", cause) if cause else ("died", _SILENT)


def _standing_still(lease: Mapping[str, Any]) -> int | None:
    """The attempt's process, where it is one of this host and was stopped, as by a terminal."""
    process = _whole(lease.get("pid"))
    if process <= 0 or lease.get("host") != socket.gethostname():
        return None
    try:
        is_ours = b"glci" in Path(f"/proc/{process}/cmdline").read_bytes()
        state = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return None
    return process if is_ours and state in ("T", "t") else None


def _sign(said: Mapping[str, Any]) -> LastSign:
    """What an attempt said, perhaps one of another version: what is not known is passed over."""
    found = said["seconds"] if isinstance(said.get("seconds"), dict) else {}
    return LastSign(
        time=_number(said.get("time")),
        began=_number(said.get("began")),
        step=_whole(said.get("step")),
        steps=_whole(said.get("steps")),
        seconds={kind: _number(found.get(kind)) for kind in KINDS},
    )


def _whole(value: Any) -> int:
    return int(_number(value))


def _number(value: Any, otherwise: float = 0.0) -> float:
    """A number in a record, which may stand in it as a word."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return otherwise
    return number if math.isfinite(number) else otherwise


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    return {kind: value / total if total else 0.0 for kind, value in seconds.items()}
