"""The one way tests start worlds: real processes, real gloo, on loopback; a hang fails, it never waits."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# What takes seconds to import, the server imports once for all that it forks.
CONTEXT.set_forkserver_preload(["deepspeed", "glci_dist.training.setup", "tests.preloaded"])


def start_server() -> None:
    """Start the one that all worlds of this process are forked from.

    Before anything else does: there is one a process, which keeps what it was started with. That of the loader has
    signals blocked, and has imported next to nothing.
    """
    forkserver.ensure_running()


def run_world(size: int, function: Callable[..., Any], *args: Any, timeout: float = 100) -> list[Any]:
    """Call ``function(*args)`` in ``size`` processes that a launcher's environment describes.

    Returns the results in the order of ranks. Raises ``AssertionError`` with the traceback of a
    rank that failed, and after ``timeout`` seconds; every process has ended by then.
    """
    answers = CONTEXT.Queue()
    port = free_port()
    processes = [
        CONTEXT.Process(target=_run_rank, args=(rank, size, port, answers, function, args)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    try:
        while len(results) < size:
            try:
                rank, error, result = answers.get(timeout=0.2)
            except queue.Empty:
                dead = [r for r, process in enumerate(processes) if not process.is_alive() and r not in results]
                if dead and answers.empty():
                    raise AssertionError(f"ranks {dead} of {size} died without an answer") from None
                if time.monotonic() > deadline:
                    raise AssertionError(f"a world of {size} gave no answer within {timeout} s") from None
                continue
            if error is not None:
                raise AssertionError(f"rank {rank} of {size} failed:\n{error}")
            results[rank] = pickle.loads(result)
    finally:
        for process in processes:
            process.join(5 if len(results) == size else 0)
            if process.is_alive():
                process.kill()
                process.join()
    return [results[rank] for rank in range(size)]


def launcher_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun would set for a rank of a world on this host."""
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    """A loopback port that was free a plan ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _run_rank(
    rank: int, size: int, port: int, answers: Any, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(launcher_environment(rank, size, port))
    try:
        # Pickled here: a queue would pass tensors as handles that die with this process.
        answers.put((rank, None, pickle.dumps(function(*args))))
    except BaseException:
        answers.put((rank, traceback.format_exc(), None))
