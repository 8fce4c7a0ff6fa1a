"""Real commands in real processes, for tests of what happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.worlds import free_port, launcher_environment


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
        self.ranks: list[subprocess.Popen[bytes]] = []
        for rank in range(size):
            variables = {**os.environ, **launcher_environment(rank, size, port), **(environment or {})}
            with (log.parent / f"{log.name}.{rank}").open("w") as output:
                self.ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, "train", *overrides],
                        env=variables,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        process_group=self.ranks[0].pid if self.ranks else 0,
                    )
                )

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
