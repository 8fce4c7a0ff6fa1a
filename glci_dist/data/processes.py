"""Runs a function over many tasks in several processes that never outlive their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from glci_dist.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_processes() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_processes(function: Callable[[Task], Result], tasks: Iterable[Task], *, processes: int) -> Iterator[Result]:
    """``function`` of each task, in the order of completion; tasks are drawn as they are needed.

    An error in a process is raised here once the tasks in progress have ended. UserError if a process dies.
    """
    if processes == 1:
        yield from map(function, tasks)
        return
    # A spawned process inherits no lock that a thread of this one (torch's, OpenCV's) may hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool:
        try:
            running: set[Future[Result]] = set()
            for task in tasks:
                running.add(pool.submit(function, task))
                if len(running) >= 2 * processes:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as fault:
            raise UserError(
                "a process was killed from outside (out of memory?); run the same command again, "
                "with fewer --processes where memory is short"
            ) from fault
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import cv2

    cv2.setNumThreads(1)  # the processes share the cores


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Otherwise a process whose parent was killed would go on waiting for tasks, or writing its shard.
        parent.join()
        os._exit(1)
