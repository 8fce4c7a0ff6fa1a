"""Real commands in processes of their own, for tests of what happens to them."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from tests.worlds import CONTEXT, free_port, launcher_environment


class Rank(Protocol):
    """A process, as ``subprocess.Popen`` has it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...


class Forked:
    """A command in a process that the worlds' server forks, which has imported all that a command imports."""

    def __init__(self, module: str, arguments: list[str], log: Path, variables: Mapping[str, str], group: int) -> None:
        log.write_text("")
        self._process = CONTEXT.Process(target=_become, args=(module, arguments, log, dict(variables), group))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)


class Command:
    """``glci train`` in one real process a rank, as a launcher starts them, in a process group of their own.

    ``is_fresh``: in new interpreters, which take seconds to import torch, and not in forks of one that has.
    """

    def __init__(
        self,
        overrides: list[str],
        *,
        size: int,
        log: Path,
        module: str = "glci_dist",
        environment: Mapping[str, str] | None = None,
        is_fresh: bool = False,
    ) -> None:
        self._log, port = log, free_port()
        self.ranks: list[Rank] = []
        start = _fresh if is_fresh else Forked
        try:
            for rank in range(size):
                variables = {**os.environ, **launcher_environment(rank, size, port), **(environment or {})}
                group = self.ranks[0].pid if self.ranks else 0
                process = start(module, ["train", *overrides], self._file(rank), variables, group)
                self.ranks.append(process)
                _wait_for_group(process, group or process.pid)
        except BaseException:
            # pytest would wait for them at its end.
            self.kill()
            raise

    def said(self, rank: int = 0) -> str:
        return self._file(rank).read_text()

    def wait_for(self, text: str, *, seconds: float = 120) -> None:
        """Return as soon as rank 0 said ``text``."""
        deadline = time.monotonic() + seconds
        while text not in self.said():
            assert time.monotonic() < deadline, f"never said {text!r}:\n{self.said()}"
            assert all(process.poll() is None for process in self.ranks), f"ended:\n{self.said()}"
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL every process, loader workers included; returns when all ranks are gone."""
        for process in self.ranks:
            with suppress(ProcessLookupError):
                os.killpg(self.ranks[0].pid, signal.SIGKILL)
            process.send_signal(signal.SIGKILL)
            process.wait()

    def exit_codes(self, *, seconds: float = 120) -> list[int]:
        return [process.wait(seconds) for process in self.ranks]

    def _file(self, rank: int) -> Path:
        return self._log.parent / f"{self._log.name}.{rank}"


@contextmanager
def started(
    overrides: list[str],
    *,
    size: int,
    log: Path,
    module: str = "glci_dist",
    environment: Mapping[str, str] | None = None,
    is_fresh: bool = False,
) -> Iterator[Command]:
    """A command none of whose processes outlives the block."""
    command = Command(overrides, size=size, log=log, module=module, environment=environment, is_fresh=is_fresh)
    try:
        yield command
    finally:
        command.kill()


def _fresh(module: str, arguments: list[str], log: Path, variables: Mapping[str, str], group: int) -> Rank:
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=group,
        )


def _become(module: str, arguments: list[str], log: Path, variables: dict[str, str], group: int) -> None:
    """Go on as ``python -m module arguments`` would."""
    os.setpgid(0, group)
    with log.open("w") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _wait_for_group(process: Rank, group: int) -> None:
    """Until a process is in its group, a signal to the group does not reach it."""
    deadline = time.monotonic() + 60
    with suppress(ProcessLookupError):
        while os.getpgid(process.pid) != group and process.poll() is None:
            assert time.monotonic() < deadline, f"process {process.pid} never joined group {group}"
            time.sleep(0.001)
