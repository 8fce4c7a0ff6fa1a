"""Jobs of this machine (``cluster.executor=local``, ``debug``): processes, by the number that submitit gave them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import ClassVar

from glci_dist.config import ClusterConfig, Config
from glci_dist.slurm.backends import by_submitit
from glci_dist.slurm.backends.base import Allocation, Backend, JobHandle, JobRequest, Submitted, code_variables
from glci_dist.slurm.launch import Launch
from glci_dist.slurm.task import DETACH, IGNORED

_NO_LIMIT_MIN = 60 * 24 * 365


class SingleMachineBackend(Backend):
    """Jobs of this machine, by submitit."""

    submitit_name: ClassVar[str]
    python: ClassVar[str] = by_submitit.PYTHON

    def submit(self, launches: Sequence[Launch], request: JobRequest) -> list[JobHandle]:
        import submitit

        executor = submitit.AutoExecutor(folder=request.folder, cluster=self.submitit_name, local_python=self.python)
        # Nobody would start it again after a time limit.
        executor.update_parameters(name=request.name, timeout_min=_NO_LIMIT_MIN, nodes=request.cluster.nodes)
        with self.surroundings(request.code):
            return by_submitit.handles(executor.submit(launch) for launch in launches)

    def surroundings(self, code: Path) -> AbstractContextManager[None]:
        """What this process is like while jobs start, which inherit from it."""
        return nullcontext()

    def refusals(self, config: Config) -> Iterator[str]:
        cluster = config.cluster
        if cluster.nodes > 1:
            yield f"cluster.nodes={cluster.nodes} with cluster.executor={cluster.executor}: this machine is one node"
        yield from super().refusals(config)

    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def watch(self, job: Submitted, handle: JobHandle) -> tuple[bool, str]:
        return not handle.inner.done(), handle.inner.state

    def allocation(self, folder: Path) -> Allocation:
        return by_submitit.allocation(folder)


class Local(SingleMachineBackend):
    """Jobs that go on without this process, and need no terminal."""

    submitit_name = "local"
    python = f"{by_submitit.PYTHON} {DETACH}"

    @contextmanager
    def surroundings(self, code: Path) -> Iterator[None]:
        """Have a job's processes, which inherit from this one, run the copy of the code, and not hold its terminal."""
        terminal = (signal.SIGINT, signal.SIGHUP)
        ignored = " ".join(number.name for number in terminal if signal.getsignal(number) == signal.SIG_IGN)
        inherited = {**code_variables(code), IGNORED: ignored}
        before = {name: os.environ.get(name) for name in inherited}
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [os.dup(number) for number in range(3)]
        nowhere = os.open(os.devnull, os.O_RDWR)
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in terminal}
        os.environ.update(inherited)
        for number in range(3):
            os.dup2(nowhere, number)
        try:
            yield
        finally:
            for number, mine in enumerate(kept):
                os.dup2(mine, number)
                os.close(mine)
            os.close(nowhere)
            for which, handler in handlers.items():
                signal.signal(which, handler)
            for name, value in before.items():
                os.environ.pop(name)
                os.environ.update({name: value} if value is not None else {})

    def refusals(self, config: Config) -> Iterator[str]:
        yield from super().refusals(config)
        wanted = config.cluster.gpus
        if wanted and wanted > (there := len(_gpus())):
            yield f"cluster.gpus={wanted} is more than there are here ({there}): make it less"

    def environment(self, cluster: ClusterConfig) -> dict[str, str]:
        # submitit hides them from its jobs.
        return {"CUDA_VISIBLE_DEVICES": ",".join(_gpus()[: cluster.gpus or None])}

    def is_alive(self, job: Submitted) -> bool:
        """Whether the process that holds the job's others is there still."""
        with suppress(OSError):
            # Its number may be another's by now.
            words = Path(f"/proc/{job.job}/cmdline").read_text(errors="replace").split("\0")
            return "submitit.local._local" in words and str(job.folder) in words
        return False

    def cancel(self, job: str) -> None:
        # It passes the signal on.
        with suppress(ProcessLookupError):
            os.kill(int(job), signal.SIGTERM)

    def state_before_attempt(self, job: Submitted) -> tuple[str, str]:
        return ("starting", f"process {job.job}") if self.is_alive(job) else ("failed", f"see {job.out}")


class Debug(SingleMachineBackend):
    """Jobs that run in the process that submits them when they are followed, and end with it, to try a submission."""

    submitit_name = "debug"
    is_followed = True

    def is_alive(self, job: Submitted) -> bool:
        return False

    def cancel(self, job: str) -> None:
        """Nothing is left to cancel."""

    def state_before_attempt(self, job: Submitted) -> None:
        return None


def _gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return list(filter(None, named.split(",")))
    import torch

    return list(map(str, range(torch.cuda.device_count())))
