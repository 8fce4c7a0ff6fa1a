"""Jobs that run in the process that submits them (``cluster.executor=debug``), to try a submission."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glci_dist.slurm.backends.local import SingleMachineBackend

if TYPE_CHECKING:
    from glci_dist.slurm.jobs import Submitted


class Debug(SingleMachineBackend):
    """Jobs that run when they are followed, and end with this process."""

    submitit_name = "debug"
    is_followed = True

    def is_alive(self, job: Submitted) -> bool:
        return False

    def cancel(self, job: str) -> None:
        """Nothing is left to cancel."""

    def state_before_attempt(self, job: Submitted) -> None:
        return None
