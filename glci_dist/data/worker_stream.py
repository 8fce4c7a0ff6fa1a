"""Batches from loader workers, in step order; if a worker is lost, new workers make its batch again.

A batch is a function of its step, so a worker that was killed (out of memory, say) costs only the time to start others.
"""

from __future__ import annotations

import errno
import math
import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from glci_dist.config import DataConfig
from glci_dist.data import workers
from glci_dist.data.batch import Batch
from glci_dist.errors import Ending, Fault, UserError, is_short_of_files, more_files

TRIES = 3
"""The run ends when workers are lost this many times in a row while making one batch."""

_SHARED = "/dev/shm"
_MIB = 2**20
_NO_PHOTOS = torch.empty(0, dtype=torch.uint8)


class BatchMaker(Protocol):
    """Makes the batch of any step; picklable."""

    @property
    def photo_bytes(self) -> int: ...
    def photo_shape(self, step: int) -> tuple[int, ...]: ...
    def make(self, step: int, photos: Tensor) -> Batch: ...
    def mirror(self, step: int, photos: Tensor) -> None: ...


def worker_batches(maker: BatchMaker, data: DataConfig, steps: Sequence[int], *, preload: str) -> Iterator[Batch]:
    """The batches of some steps from ``data.workers`` processes.

    ``preload``: the module that the fork server imports once for all workers. Raises ``UserError`` if they cannot
    start, what the maker raises, and ``Fault`` if they are lost ``TRIES`` times.
    """
    done = 0
    lost: list[str] = []
    while done < len(steps):
        group = _WorkerGroup(maker, data, steps[done:], preload)
        # Not a for loop: only errors of taking a batch count as a lost worker, not those of its consumer.
        while (batch := group.next_batch()) is not None:
            yield replace(batch, remade=tuple(lost))
            done += 1
            lost = []
        if done == len(steps):
            return
        lost.append(group.lost)
        # The next group needs its shared memory.
        del group
        if len(lost) == TRIES:
            raise Fault(
                f"loader workers were lost {TRIES} times in a row in making the batch of step {steps[done]} "
                f"({lost[-1]}): {_USE_FEWER_WORKERS}; the same command goes on from the last checkpoint",
                one_rank=True,
            )


class _WorkerGroup:
    """Worker processes that are started and ended together."""

    def __init__(self, maker: BatchMaker, data: DataConfig, steps: Sequence[int], preload: str) -> None:
        self._maker = maker
        self.lost = ""
        """Which worker was lost, and why; empty: none."""
        before = set(active_children())
        ring_bytes = data.workers * (data.prefetch + 1) * maker.photo_bytes
        try:
            if ring_bytes > (free := _free()):
                sizes = f"need {ring_bytes / _MIB:.1f} MiB of shared memory, {_SHARED} has {free / _MIB:.2f} MiB free"
                raise OSError(errno.ENOSPC, f"{data.workers} workers {sizes}")
            self._ring = _Ring(workers=data.workers, places=data.prefetch + 1, place_bytes=maker.photo_bytes)
            loader = DataLoader(
                _RingDataset(maker, self._ring),
                batch_size=None,
                sampler=steps,
                num_workers=data.workers,
                prefetch_factor=data.prefetch,
                multiprocessing_context=workers.context(preload),
                worker_init_fn=workers.start,
                # Otherwise DataLoader would draw from the training process's global generator.
                generator=torch.Generator(),
            )
            self._messages: Iterator[Any] = iter(loader)
        except (OSError, EOFError, RuntimeError, MemoryError) as error:
            raise UserError(
                f"data.workers={data.workers} loader workers cannot start ({_first_line(error)}): {_way_out(error)}",
                one_rank=True,
            ) from error
        self._workers: set[BaseProcess] = set(active_children()) - before

    def next_batch(self) -> Batch | None:
        """The next batch; None after the last, and if a worker was lost."""
        try:
            message = next(self._messages, None)
        except (RuntimeError, OSError, EOFError) as error:
            self.lost = self._lost_worker(error)
            if not self.lost:
                raise
            return None
        if message is None:
            return None
        if isinstance(message, Ending):
            raise message
        pickled, worker, place = message
        batch: Batch = pickle.loads(pickled)
        batch = replace(batch, photos=self._ring.copy_out(worker, place, self._maker.photo_shape(batch.step)))
        self._maker.mirror(batch.step, batch.photos)
        return batch

    def _lost_worker(self, error: Exception) -> str:
        """Which worker was lost, and why; empty if none was."""
        for worker in sorted(self._workers, key=lambda each: each.pid or 0):
            code = worker.exitcode
            if code not in (None, 0):
                return f"process {worker.pid} {_exit_cause(code)}"
        return _first_line(error) if "exited unexpectedly" in str(error) else ""


def _exit_cause(code: int) -> str:
    """The meaning of a worker's exit code."""
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL: its machine, container or job was out of memory, as a rule"
    if code == -signal.SIGBUS:
        return f"was ended by SIGBUS: {_SHARED} is full ({_free() / _MIB:.1f} MiB free), as a rule"
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}, or the server that it was forked from did"


_USE_FEWER_WORKERS = (
    "set fewer data.workers (0: the training process makes its batches itself) or a smaller data.prefetch"
)


def _free() -> float:
    try:
        found = os.statvfs(_SHARED)
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize


def _way_out(error: BaseException) -> str:
    number, said = getattr(error, "errno", None), str(error)
    # Checked first, because shared memory and sockets need open files too.
    if number in (errno.EMFILE, errno.ENFILE) or is_short_of_files(said):
        return f"{more_files(said)}, or {_USE_FEWER_WORKERS}"
    if number == errno.ENOSPC or "shared memory" in said or "No space left" in said:
        return f"enlarge {_SHARED} (docker run --shm-size=2g, say), or {_USE_FEWER_WORKERS}"
    return f"look at the limits on processes and memory (ulimit -u, the container's or job's), or {_USE_FEWER_WORKERS}"


def _first_line(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def batch_fault(error: OSError | MemoryError, step: int) -> Fault:
    """The fault for a batch of ``step`` that could not be made, for a reason other than the shards' content."""
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    mend = f"free memory or raise its limit, or {_USE_FEWER_WORKERS}" if isinstance(error, MemoryError) else "mend that"
    return Fault(
        f"the batch of step {step} cannot be made: {_first_line(error)}{where}: {mend}; the same command goes on from "
        "the last checkpoint",
        one_rank=True,
    )


class _Ring:
    """Reused shared memory: workers decode photos into it, and the training process copies them out.

    New shared memory for each batch would cost as much as decoding: a page fault for each 4 KiB.
    """

    def __init__(self, *, workers: int, places: int, place_bytes: int) -> None:
        self._photos = torch.empty((workers, places, place_bytes), dtype=torch.uint8).share_memory_()
        # Only its worker fills an empty place, and only the training process empties a full one.
        self._full = torch.zeros((workers, places), dtype=torch.bool).share_memory_()

    def fill(self, worker: int, shape: tuple[int, ...]) -> tuple[Tensor, int]:
        """An empty place of ``worker`` for photos of ``shape``, the lowest as it may still be in the processor's cache;
        and its number.
        """
        # There always is one: a worker is at most ``places`` - 1 batches ahead of the one being copied.
        place = int(self._full[worker].numpy().argmin())
        if self._full[worker, place]:
            raise RuntimeError(f"loader worker {worker} was asked for more batches than it has places")
        self._full[worker, place] = True
        return self._view(worker, place, shape), place

    def copy_out(self, worker: int, place: int, shape: tuple[int, ...]) -> Tensor:
        """A copy of the photos in a place, which is empty afterwards."""
        photos = self._view(worker, place, shape).clone()
        self._full[worker, place] = False
        return photos

    def _view(self, worker: int, place: int, shape: tuple[int, ...]) -> Tensor:
        return self._photos[worker, place, : math.prod(shape)].view(shape)


class _RingDataset(Dataset["tuple[bytes, int, int] | Ending"]):
    """Each step's pickled batch without its photos, with the worker and place of the ring that hold them."""

    def __init__(self, maker: BatchMaker, ring: _Ring) -> None:
        self._maker, self._ring = maker, ring

    def __getitem__(self, step: int) -> tuple[bytes, int, int] | Ending:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        photos, place = self._ring.fill(info.id, self._maker.photo_shape(step))
        # Returned, because DataLoader would wrap a raised error in the worker's traceback.
        try:
            batch = self._maker.make(step, photos)
        except UserError as error:
            return error
        except (OSError, MemoryError) as error:
            return batch_fault(error, step)
        # Pickled here: the queue's thread would take three times as long, and this one would wait for it.
        return pickle.dumps(replace(batch, photos=_NO_PHOTOS)), info.id, place
