"""The protocol that ``cluster.executor`` chooses a class of: all that differs between the places where jobs run."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from glci_dist.config import ClusterConfig, Config
from glci_dist.errors import UserError
from glci_dist.slurm import inherited
from glci_dist.slurm.backends.scheduling import Scheduler
from glci_dist.slurm.launch import Launch


@dataclass(frozen=True)
class JobRequest:
    """What is asked for: one job, or a job array, all of whose jobs are alike."""

    cluster: ClusterConfig
    name: str
    code: Path
    """The copy of the code, which comes first on the job's ``PYTHONPATH``."""
    folder: Path
    """For what belongs to the job, such as its output."""


@dataclass(frozen=True)
class JobHandle:
    """A job that was submitted just now."""

    job: str
    """Its number, or what else `glci status` and ``cancel`` know it by."""
    out: Path
    """Where the first node's output goes."""
    inner: Any = None
    """The backend's own, for ``watch``."""


@dataclass(frozen=True)
class Submitted:
    """A job that carries a run, as the run's folder has noted it."""

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


@dataclass(frozen=True)
class Allocation:
    """The nodes of a running job, as the task on one of them sees them."""

    job: str
    hosts: Sequence[str]
    """The nodes, as the scheduler calls them."""
    node: int = 0
    """The place of this one among them."""
    restart: int = 0
    """How often the job was queued again."""
    script: Path = Path()
    """What the scheduler was given."""


class Backend(ABC):
    """Where jobs run. A class needs ``submit``, ``is_alive`` and ``cancel``; the rest is as for plain processes."""

    left_out: ClassVar[Sequence[str]] = ()
    """Variables of the caller that reach no job, besides those that ``inherited`` always leaves out."""
    counts: ClassVar[Sequence[str]] = ()
    """Variables of the caller that say which cluster it is."""
    is_followed: ClassVar[bool] = False
    """Whether `glci submit` always follows the job, as with ``--wait``."""

    @property
    def scheduler(self) -> Scheduler | None:
        """What queues the jobs, and can queue them again; None: they start at once, and once."""
        return None

    @abstractmethod
    def submit(self, launches: Sequence[Launch], request: JobRequest) -> list[JobHandle]:
        """A job for each launch, in their order; each node calls the launch, or runs its ``command``.

        Raises ``UserError``. Variables that are left out are gone from ``os.environ`` when this is called.
        """

    @abstractmethod
    def is_alive(self, job: Submitted) -> bool:
        """Whether a job waits or runs. Raises ``UserError`` where that cannot be told."""

    @abstractmethod
    def cancel(self, job: str) -> None:
        """Have a job save and end, or leave the queue."""

    def refusals(self, config: Config) -> Iterator[str]:
        """What of a configuration cannot be done, a line each; others add to this."""
        cluster = config.cluster
        if cluster.gpus and cluster.workers != cluster.gpus:
            yield (
                f"cluster.workers={cluster.workers} ranks on cluster.gpus={cluster.gpus} GPUs of a node: a rank has "
                "one GPU, make them equal"
            )

    def scheduler_refusals(self, request: JobRequest) -> Iterator[str]:
        """Why the scheduler would not take the job, a line each. Raises ``Silence`` without its answer."""
        return iter(())

    def waits_for(self, cluster: ClusterConfig) -> str | None:
        """What a job that would be taken waits for, where somebody has to bring it back: nodes, a partition."""
        return None

    def explain(self, request: JobRequest) -> Iterator[str]:
        """What `glci explain` prints of the job itself. Raises ``UserError`` where that is not known."""
        return iter(())

    def device(self) -> str:
        """The device that its nodes compute on, ``cuda`` or ``cpu``."""
        return "cuda"

    def overrides(self, config: Config) -> list[str]:
        """Further overrides of a run that is submitted."""
        return []

    def environment(self, cluster: ClusterConfig) -> dict[str, str]:
        """Variables of the workers, where ``cluster.environment`` has no others."""
        return {}

    def watch(self, job: Submitted, handle: JobHandle) -> tuple[bool, str]:
        """Whether a job that is followed goes on, and its state in a word."""
        is_alive = self.is_alive(job)
        return is_alive, "RUNNING" if is_alive else "ENDED"

    def state_before_attempt(self, job: Submitted) -> tuple[str, str] | None:
        """State and detail of a run whose job has come to no attempt; None: others know."""
        return ("starting", f"job {job.job}") if self.is_alive(job) else ("failed", f"see {job.out}")

    def allocation(self, folder: Path) -> Allocation:
        """Of the job that this process is a task of; ``folder``: its ``JobRequest``'s. Here, of a lone process."""
        return Allocation(str(os.getpid()), [socket.gethostname()])


class Scheduled(Backend):
    """Where a scheduler queues jobs. A class needs ``scheduler``, ``submit`` and ``allocation``."""

    left_out = inherited.DEVICES

    @property
    @abstractmethod
    def scheduler(self) -> Scheduler:
        """What queues the jobs."""

    @abstractmethod
    def allocation(self, folder: Path) -> Allocation:
        """Of the job that this process is a task of."""

    def is_alive(self, job: Submitted) -> bool:
        # Where there is no scheduler, a run may go on that was on one once.
        there = self.scheduler.queued(job.job) if self.scheduler.is_there() else None
        return there is not None and not there.has_ended

    def cancel(self, job: str) -> None:
        self.scheduler.cancel(job)

    def refusals(self, config: Config) -> Iterator[str]:
        yield from super().refusals(config)
        cluster = config.cluster
        if cluster.signal_lead_s >= 60 * cluster.time_min:
            yield f"cluster.signal_lead_s={cluster.signal_lead_s} leaves nothing of cluster.time_min={cluster.time_min}"

    def overrides(self, config: Config) -> list[str]:
        lead, within = config.cluster.signal_lead_s, config.checkpoints.stop_within_s
        # A save that takes longer than the lead is of no use, and what is said of it should be true.
        return [f"checkpoints.stop_within_s={min(within or lead, lead)}"] if lead else []

    def watch(self, job: Submitted, handle: JobHandle) -> tuple[bool, str]:
        try:
            there = self.scheduler.queued(job.job)
        except UserError as silence:
            # A controller that is busy, or starts again, loses no job.
            return True, f"not known: {silence}"
        if there is not None and not there.has_ended:
            reason = f" ({there.reason})" if there.state == "PENDING" and there.reason != "None" else ""
            return True, f"{there.state}{reason}" + (f" on {there.nodes}" if there.nodes else "")
        ran = self.scheduler.history(job.job, since=job.time)
        return False, there.state if there else ran[-1].state if ran else "gone"

    def state_before_attempt(self, job: Submitted) -> tuple[str, str] | None:
        return None


def code_variables(code: Path) -> dict[str, str]:
    """The variables by which a process runs the copy of the code that was submitted."""
    path = filter(None, [str(code), os.environ.get("PYTHONPATH")])
    # Safe: python -m would look into the current folder first, which may be a checkout.
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path)}
