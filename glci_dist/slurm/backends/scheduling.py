"""What is asked of a scheduler that queues jobs, whichever it is, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

PREEMPTED = "its job is preempted"
"""What ``Scheduler.warning`` says where the job is to make room for another."""

_ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
"""States in which a job has ended; in any other (SIGNALING, STAGE_OUT, REQUEUED, ...) it runs, or will."""
_TAKEN_AWAY = ("PENDING", "COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
"""States in which a job that ran is to run no longer, for now."""


@dataclass(frozen=True)
class Queued:
    """A job as the controller has it."""

    state: str
    """In SLURM's words, whichever scheduler it is: ``PENDING``, ``RUNNING``, ``COMPLETING``, ..."""
    reason: str
    """Why it waits."""
    nodes: str
    start: str
    """When it started, or is expected to."""
    restarts: int
    """How often it was queued again."""

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def is_taken_away(self) -> bool:
        """Whether its processes are to end, where there are some left."""
        return self.has_ended or self.state in _TAKEN_AWAY


@dataclass(frozen=True)
class Ran:
    """One run of a job through the scheduler, as its accounting has it."""

    state: str
    nodes: str
    start: str
    """As SLURM writes it: local time; ``None`` or ``Unknown`` where there is none."""
    end: str
    exit_code: str

    @property
    def began(self) -> float:
        """Seconds since 1970; infinite: it did not."""
        return _seconds(self.start)

    @property
    def ended(self) -> float:
        """Seconds since 1970; infinite: it did not."""
        return _seconds(self.end)


class Scheduler(Protocol):
    """A scheduler; a module can be one. Each function raises ``UserError`` without its answer."""

    CANCEL: str
    """The command by which a user ends a job, without its number."""

    def is_there(self) -> bool:
        """Whether it can be asked from this machine."""

    def queued(self, job: str) -> Queued | None:
        """The job, if the controller has it still."""

    def history(self, job: str, *, since: float) -> Sequence[Ran]:
        """Every run of the job, submitted at ``since`` (seconds since 1970), oldest first; empty: it is forgotten."""

    def lost_nodes(self, ran: Ran) -> list[str]:
        """Nodes of a job's run that went down while it ran."""

    def jobs_of(self, folder: Path) -> list[str]:
        """This user's jobs that wait or run, and were submitted from ``folder``."""

    def warning(self, job: str, *, lead_s: int) -> str:
        """Why it warns a running job by a signal (``PREEMPTED``, or in words); empty: not known."""

    def refusal(self, script: Path, *, exclude: str) -> str | None:
        """Why it would not take what ``Allocation.script`` names without some nodes; None: it would."""

    def requeue(self, job: str) -> None:
        """Put a running job, perhaps that of this process, into the queue again."""

    def exclude(self, job: str, nodes: str) -> None:
        """Have a job that waits not start on some nodes."""

    def cancel(self, job: str) -> None:
        """Cancel a job that waits or runs."""


def _seconds(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return math.inf
