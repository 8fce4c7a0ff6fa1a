"""The task of a job, as it is pickled at the submission and called on each node.

torch is loaded on the node alone: who submits, or looks, need not wait for it.
``python -m glci_dist.slurm.launch FILE`` calls one that ``Launch.command`` left in a file.
"""

from __future__ import annotations

import pickle
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from glci_dist import output
from glci_dist.config import ClusterConfig
from glci_dist.errors import Ending


@dataclass
class Launch:
    """The task of one node. Paths are absolute."""

    overrides: list[str]
    run: Path
    worlds: list[int]
    """The numbers of ranks that the configuration allows."""
    cluster: ClusterConfig

    def __call__(self) -> str:
        """Run the workers to the end of the run; what became of it. Raises where the job has failed."""
        from glci_dist.slurm.backends.choice import backend
        from glci_dist.slurm.node_launcher import NodeLauncher

        output.take_over()
        return NodeLauncher(self, backend(self.cluster.executor).allocation(self.run / "jobs")).run()

    def command(self, folder: Path) -> list[str]:
        """What each node of the job is to run; leaves a file for it in ``folder``."""
        file = folder / f"{uuid.uuid4().hex}.launch.pkl"
        file.write_bytes(pickle.dumps(self))
        return [sys.executable, "-m", "glci_dist.slurm.task", "-u", "-m", "glci_dist.slurm.launch", str(file)]


if __name__ == "__main__":
    try:
        pickle.loads(Path(sys.argv[1]).read_bytes())()
    except Ending as ending:
        sys.exit(f"glci: {ending}")
