"""The task of a job, as submitit pickles it at the submission and calls it on each node.

torch is loaded on the node alone: who submits, or looks, need not wait for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from glci_dist import output
from glci_dist.config import ClusterConfig


@dataclass
class Launch:
    """The task of one node. Paths are absolute."""

    overrides: list[str]
    run: Path
    parts: int
    """What the number of ranks has to divide: the global batch in micro-batches."""
    cluster: ClusterConfig

    def __call__(self) -> str:
        """Run the workers to the end of the run; what became of it. Raises where the job has failed."""
        from submitit import JobEnvironment

        from glci_dist.slurm.launcher import Work

        output.take_over()
        # submitit's debug executor leaves it out.
        os.environ.setdefault("SUBMITIT_FOLDER", str(self.run / "jobs"))
        environment = JobEnvironment()
        hosts = list(environment.hostnames)
        script = environment.paths.submission_file
        job = Work(self, environment.job_id, hosts, environment.node, script)
        # What an earlier run of this job left would be taken for this one's.
        environment.paths.result_pickle.unlink(missing_ok=True)
        return job.run()
