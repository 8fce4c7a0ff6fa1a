"""The jobs that a run was submitted as: lines of ``RUN/jobs/submitted.jsonl``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from glci_dist.errors import UserError
from glci_dist.slurm.backends.base import Backend
from glci_dist.slurm.backends.choice import backend
from glci_dist.slurm.backends.scheduling import Scheduler


@dataclass(frozen=True)
class Submitted:
    """A job that carries a run."""

    job: str
    executor: str
    time: float
    overrides: list[str]
    code: str
    out: str
    """Where the first node's output goes."""

    @property
    def folder(self) -> Path:
        """Where submitit keeps what belongs to the job."""
        return Path(self.out).parent


def submitted(run: Path) -> list[Submitted]:
    """The jobs that a run was submitted as, oldest first."""
    try:
        lines = _file(run).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [job for line in lines if (job := _job(line)) is not None]


def _job(line: str) -> Submitted | None:
    """A job that this version or another one noted; None for a line that a full disk tore."""
    try:
        record = json.loads(line)
        return Submitted(**{name: record[name] for name in Submitted.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        return None


def active(run: Path) -> list[Submitted]:
    """Those of the run's jobs that wait in the queue, or run. Raises ``UserError`` without the scheduler's answer."""
    return [each for each in submitted(run) if backend(each.executor).is_alive(each)]


def check_idle(run: Path, chosen: Backend) -> None:
    """Raise ``UserError`` where a job carries the run already."""
    for job in active(run):
        raise UserError(f"{run} has job {job.job} in the queue already: see `glci status`, or end it by `glci cancel`")
    for scheduler, number in unnoted(run, chosen):
        raise UserError(
            f"{run} has job {number} in the queue already, though its folder says nothing of it (was it removed?): "
            f"{scheduler.CANCEL} {number}"
        )


def unnoted(run: Path, chosen: Backend) -> list[tuple[Scheduler, str]]:
    """Jobs in the queue that the run was submitted as, and of which its folder says nothing, as after its removal."""
    scheduler = chosen.scheduler
    if scheduler is None or not scheduler.is_there():
        return []
    noted = {each.job.split("_")[0] for each in submitted(run)}
    return [(scheduler, number) for number in scheduler.jobs_of(run.absolute() / "jobs") if number not in noted]


def add(run: Path, job: Submitted) -> None:
    """Note that a run was submitted."""
    with _file(run).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(job)) + "\n")


def _file(run: Path) -> Path:
    return run / "jobs" / "submitted.jsonl"
