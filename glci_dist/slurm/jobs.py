"""The jobs that a run was submitted as: lines of ``RUN/jobs/submitted.jsonl``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from glci_dist.errors import UserError
from glci_dist.slurm import local, scheduler


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
    """Those of the run's jobs that wait in the queue, or run. Raises ``UserError`` without SLURM's answer."""
    return [each for each in submitted(run) if _is_active(each)]


def check_idle(run: Path, executor: str) -> None:
    """Raise ``UserError`` where a job carries the run already."""
    for job in active(run):
        raise UserError(f"{run} has job {job.job} in the queue already: see `glci status`, or end it by `glci cancel`")
    for number in unnoted(run) if executor == "slurm" else []:
        raise UserError(
            f"{run} has job {number} in the queue already, though its folder says nothing of it (was it removed?): "
            f"scancel {number}"
        )


def unnoted(run: Path) -> list[str]:
    """Jobs in the queue that the run was submitted as, and of which its folder says nothing, as after its removal."""
    if not scheduler.is_there():
        return []
    noted = {each.job.split("_")[0] for each in submitted(run)}
    return [number for number in scheduler.jobs_of(run.absolute() / "jobs") if number not in noted]


def _is_active(job: Submitted) -> bool:
    if job.executor == "local":
        return local.is_alive(job.job, job.folder)
    # Where there is no scheduler, a run may go on that was on one once.
    there = scheduler.queued(job.job) if job.executor == "slurm" and scheduler.is_there() else None
    return there is not None and not there.has_ended


def add(run: Path, job: Submitted) -> None:
    """Note that a run was submitted."""
    with _file(run).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(job)) + "\n")


def _file(run: Path) -> Path:
    return run / "jobs" / "submitted.jsonl"
