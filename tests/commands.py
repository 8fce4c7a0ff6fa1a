"""Real commands in real processes, for tests of what happens to them."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from pathlib import Path

from tests.worlds import CONTEXT, free_port, launcher_environment


class Rank:
    """``python -m module train ...`` in a process forked from the server of worlds, which has imported it all.

    To be handled as a ``subprocess.Popen``.
    """

    def __init__(self, words: list[str], environment: Mapping[str, str], log: Path, group: int) -> None:
        """``words``: a module and its arguments. ``group``: of processes; 0: its own."""
        self._process = CONTEXT.Process(target=_become, args=(words, dict(environment), log, group))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        # Until then it is of the server's group, and a signal to its own would not find it.
        while self.poll() is None and os.getpgid(self.pid) != (group or self.pid):
            time.sleep(0.001)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _become(words: list[str], environment: dict[str, str], log: Path, group: int) -> None:
    os.setpgid(0, group)
    # What the server was started with are not this process's streams.
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    # Loader workers are to be of a server of this process's, which is of its group.
    forkserver._forkserver.__init__()  # type: ignore[misc]
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


class Command:
    """``glci train`` in one real process a rank, as a launcher starts them, in a process group of their own."""

    def __init__(
        self,
        overrides: list[str],
        *,
        size: int,
        log: Path,
        module: str = "glci_dist",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._log, port = log, free_port()
        self.ranks: list[Rank] = []
        for rank in range(size):
            variables = {**os.environ, **launcher_environment(rank, size, port), **(environment or {})}
            output = log.parent / f"{log.name}.{rank}"
            group = self.ranks[0].pid if self.ranks else 0
            self.ranks.append(Rank([module, "train", *overrides], variables, output, group))

    def said(self, rank: int = 0) -> str:
        return (self._log.parent / f"{self._log.name}.{rank}").read_text()

    def wait_for(self, text: str, *, seconds: float = 120) -> None:
        """Return as soon as rank 0 said ``text``."""
        deadline = time.monotonic() + seconds
        while text not in self.said():
            assert time.monotonic() < deadline, f"never said {text!r}:\n{self.said()}"
            assert all(process.poll() is None for process in self.ranks), f"ended:\n{self.said()}"
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL every process, loader workers included; returns when all ranks are gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.ranks[0].pid, signal.SIGKILL)
        for process in self.ranks:
            process.wait()

    def exit_codes(self, *, seconds: float = 120) -> list[int]:
        return [process.wait(seconds) for process in self.ranks]


@contextmanager
def started(
    overrides: list[str],
    *,
    size: int,
    log: Path,
    module: str = "glci_dist",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Command]:
    """A command none of whose processes outlives the block."""
    command = Command(overrides, size=size, log=log, module=module, environment=environment)
    try:
        yield command
    finally:
        command.kill()
