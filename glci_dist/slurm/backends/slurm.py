"""A SLURM cluster (``cluster.executor=slurm``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from glci_dist.config import ClusterConfig, Config
from glci_dist.errors import UserError
from glci_dist.slurm import capacity, inherited
from glci_dist.slurm import scheduler as programs
from glci_dist.slurm.asking import Silence
from glci_dist.slurm.backends import by_submitit, sbatch
from glci_dist.slurm.backends.base import Allocation, JobHandle, JobRequest, Scheduled
from glci_dist.slurm.backends.scheduling import Scheduler
from glci_dist.slurm.launch import Launch

_ASKS = (
    *("partition", "account", "qos", "constraint", "exclude", "nodes", "min_nodes"),
    *("gpus", "cpus", "memory_gb", "time_min", "sbatch"),
)
"""Keys of ``cluster`` that go into the request."""
_TASKS = "its launchers are one task a node, and each of further tasks would be a run of its own: cluster.workers is it"
_NO_RUN = {
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-core", "ntasks-per-socket", "ntasks-per-gpu"), _TASKS),
    **dict.fromkeys(("n", "array", "a"), f"a run is one job ({_TASKS}; a sweep is KEY=VALUE,VALUE)"),
    **dict.fromkeys(("test-only", "help", "usage", "version", "V"), "with it sbatch submits nothing"),
    "wrap": "the batch script is the run's",
}
"""Options of sbatch that make a job of it that cannot train the run, and why."""


class Slurm(Scheduled):
    """Jobs that SLURM queues; submitit makes their batch scripts."""

    counts = inherited.COUNTS

    @property
    def scheduler(self) -> Scheduler:
        return programs

    def submit(self, launches: Sequence[Launch], request: JobRequest) -> list[JobHandle]:
        return by_submitit.handles(sbatch.submit(launches, request))

    def refusals(self, config: Config) -> Iterator[str]:
        for key, text in config.cluster.sbatch.items():
            option = key.lstrip("-")
            option = option if len(option) == 1 else option.replace("_", "-")
            if option in _NO_RUN and text is not None and text.lower() != "false":
                yield f"cluster.sbatch.{key}={text}: {_NO_RUN[option]}; leave it out"
        yield from super().refusals(config)

    def scheduler_refusals(self, request: JobRequest) -> Iterator[str]:
        """Why SLURM would not take the job, or would let it wait for ever."""
        try:
            found = capacity.never(request.cluster) or _refusals(request)
        except Silence:
            # It is no refusal.
            raise
        except UserError as error:
            yield str(error)
        else:
            yield from (f"by the scheduler: {reason} (asked for: {_asked(request.cluster)})" for reason in found)

    def waits_for(self, cluster: ClusterConfig) -> str | None:
        return capacity.waits_for(cluster)

    def explain(self, request: JobRequest) -> Iterator[str]:
        """When it would start, and the batch script."""
        with sbatch.script(request) as script:
            with suppress(UserError):
                yield f"scheduler  {programs.expected_start(script)}"
            yield ""
            yield from script.read_text(encoding="utf-8").rstrip().splitlines()
            yield ""

    def allocation(self, folder: Path) -> Allocation:
        return by_submitit.allocation(folder, restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")))


def _refusals(request: JobRequest) -> list[str]:
    """What ``sbatch --test-only`` objects to, if anything; of several partitions it looks at less than sbatch does."""
    cluster = request.cluster
    several = cluster.partition.split(",") if "," in cluster.partition and "partition" not in cluster.sbatch else []
    with sbatch.script(request) as script:
        said = programs.refusal(script)
        if said is None or any(programs.refusal(script, partition=each) is None for each in several):
            return []
    refusal = capacity.refusal(cluster, said)
    return [] if refusal is None else [refusal]


def _asked(cluster: ClusterConfig) -> str:
    """What the scheduler may object to, by the keys that ask for it."""
    asked = {key: value for key, value in asdict(cluster).items() if key in _ASKS and value}
    return " ".join(
        f"cluster.{key}={value:g}" if isinstance(value, float) else f"cluster.{key}={value}"
        for key, value in asked.items()
    )
