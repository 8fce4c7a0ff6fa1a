"""Batches from loader workers, in step order, made again by new workers where one was lost.

A batch is a function of its step, so nothing is lost with a worker that was killed (out of memory, say) but the time
to start others.
"""

from __future__ import annotations

import errno
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
"""Times in a row that workers are lost before the batch in hand is made, after which the run ends."""

_SHARED = "/dev/shm"
_MIB = 2**20
_NO_PHOTOS = torch.empty(0, dtype=torch.uint8)


class Maker(Protocol):
    """Makes the batch of any step; picklable."""

    @property
    def photo_shape(self) -> tuple[int, ...]: ...
    def make(self, step: int, photos: Tensor) -> Batch: ...
    def mirror(self, step: int, photos: Tensor) -> None: ...


class WorkerStream:
    """The batches of some steps from ``data.workers`` processes.

    Raises ``UserError`` where they cannot start, and what the maker raises; ``Fault`` where they are lost again and
    again.
    """

    def __init__(self, maker: Maker, data: DataConfig, steps: Sequence[int], *, preload: str) -> None:
        """``preload``: the module that the workers' server imports once for all of them."""
        self._maker, self._data, self._steps, self._preload = maker, data, steps, preload

    def __iter__(self) -> Iterator[Batch]:
        done = 0
        lost: list[str] = []
        while done < len(self._steps):
            crew = _Crew(self._maker, self._data, self._steps[done:], self._preload)
            # Not a for: what is lost is lost in taking a batch, never in what is done with it.
            while (batch := crew.take()) is not None:
                yield replace(batch, remade=tuple(lost))
                done += 1
                lost = []
            if done == len(self._steps):
                return
            lost.append(crew.lost)
            # Its shared memory is needed for the next one.
            del crew
            if len(lost) == TRIES:
                raise Fault(
                    f"loader workers were lost {TRIES} times in a row in making the batch of step "
                    f"{self._steps[done]} ({lost[-1]}): {_LESS}; the same command goes on from the last checkpoint",
                    one_rank=True,
                )


class _Crew:
    """Workers that were started together, and end together."""

    def __init__(self, maker: Maker, data: DataConfig, steps: Sequence[int], preload: str) -> None:
        self._maker = maker
        self.lost = ""
        """Which of them was lost, and to what."""
        before = set(active_children())
        ring_bytes = data.workers * (data.prefetch + 1) * torch.Size(maker.photo_shape).numel()
        try:
            _check_room(ring_bytes, data.workers)
            self._ring = _Ring(workers=data.workers, places=data.prefetch + 1, shape=maker.photo_shape)
            loader = DataLoader(
                _RingDataset(maker, self._ring),
                batch_size=None,
                sampler=steps,
                num_workers=data.workers,
                prefetch_factor=data.prefetch,
                multiprocessing_context=workers.context(preload),
                worker_init_fn=workers.start,
                # Its own, because DataLoader would draw from the global generator of the training process.
                generator=torch.Generator(),
            )
            self._messages: Iterator[Any] = iter(loader)
        except (OSError, EOFError, RuntimeError, MemoryError) as error:
            raise UserError(
                f"data.workers={data.workers} loader workers cannot start ({_first_line(error)}): {_way_out(error)}",
                one_rank=True,
            ) from error
        self._workers: set[BaseProcess] = set(active_children()) - before

    def take(self) -> Batch | None:
        """The next batch; None after the last, and where a worker was lost."""
        try:
            message = next(self._messages, None)
        except (RuntimeError, OSError, EOFError) as error:
            self.lost = self._told(error)
            if not self.lost:
                raise
            return None
        if message is None:
            return None
        if isinstance(message, Ending):
            raise message
        pickled, worker, place = message
        batch: Batch = replace(pickle.loads(pickled), photos=self._ring.take(worker, place))
        self._maker.mirror(batch.step, batch.photos)
        return batch

    def _told(self, error: Exception) -> str:
        """The worker that was lost, and to what; empty where none was."""
        for worker in sorted(self._workers, key=lambda each: each.pid or 0):
            code = worker.exitcode
            if code not in (None, 0):
                return f"process {worker.pid} {_what(code)}"
        return _first_line(error) if "exited unexpectedly" in str(error) else ""


def _what(code: int) -> str:
    """What an exit code of a worker says of its end."""
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL: its machine, container or job was out of memory, as a rule"
    if code == -signal.SIGBUS:
        return f"was ended by SIGBUS: {_SHARED} is full ({_free() / _MIB:.1f} MiB free), as a rule"
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}, or the server that it was forked from did"


_LESS = "set fewer data.workers (0: the training process makes its batches itself) or a smaller data.prefetch"


def _check_room(wanted: int, count: int) -> None:
    """Raise ``OSError`` where the shared memory cannot take so many bytes."""
    free = _free()
    if wanted > free:
        raise OSError(
            errno.ENOSPC,
            f"{count} workers need {wanted / _MIB:.1f} MiB of shared memory, {_SHARED} has {free / _MIB:.2f} MiB free",
        )


def _free() -> float:
    try:
        found = os.statvfs(_SHARED)
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize


def _way_out(error: BaseException) -> str:
    number, said = getattr(error, "errno", None), str(error)
    # First: shared memory and sockets take open files too.
    if number in (errno.EMFILE, errno.ENFILE) or is_short_of_files(said):
        return f"{more_files(said)}, or {_LESS}"
    if number == errno.ENOSPC or "shared memory" in said or "No space left" in said:
        return f"enlarge {_SHARED} (docker run --shm-size=2g, say), or {_LESS}"
    return f"look at the limits on processes and memory (ulimit -u, the container's or job's), or {_LESS}"


def _first_line(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def in_one_line(error: OSError | MemoryError, step: int) -> Fault:
    """What to end with where the batch of ``step`` could not be made, by no fault of the shards' content."""
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    mend = f"free memory or raise its limit, or {_LESS}" if isinstance(error, MemoryError) else "mend that"
    return Fault(
        f"the batch of step {step} cannot be made: {_first_line(error)}{where}: {mend}; the same command goes on from "
        "the last checkpoint",
        one_rank=True,
    )


class _Ring:
    """Shared memory in which the workers make their photos, and which the training process copies them out
    of.

    Shared memory made anew for each batch costs as much as the decoding: a page fault for each 4 KiB. A place
    that was just emptied is filled again first, because it may still lie in the processor's cache.
    """

    def __init__(self, *, workers: int, places: int, shape: tuple[int, ...]) -> None:
        self._photos = torch.empty((workers, places, *shape), dtype=torch.uint8).share_memory_()
        # Only its worker fills a place that is empty, only the training process empties one that is full.
        self._full = torch.zeros((workers, places), dtype=torch.bool).share_memory_()

    def fill(self, worker: int) -> tuple[Tensor, int]:
        """A place of ``worker``'s that is empty, and its number."""
        # There always is one: no more than ``places`` - 1 batches are asked of a worker ahead of the one that
        # the training process is copying.
        place = int(self._full[worker].numpy().argmin())
        if self._full[worker, place]:
            raise RuntimeError(f"loader worker {worker} was asked for more batches than it has places")
        self._full[worker, place] = True
        return self._photos[worker, place], place

    def take(self, worker: int, place: int) -> Tensor:
        """A copy of the photos in a place, which is empty after that."""
        photos = self._photos[worker, place].clone()
        self._full[worker, place] = False
        return photos


class _RingDataset(Dataset["tuple[bytes, int, int] | Ending"]):
    """Each step's pickled batch without its photos, and the worker and place of the ring where they are."""

    def __init__(self, maker: Maker, ring: _Ring) -> None:
        self._maker, self._ring = maker, ring

    def __getitem__(self, step: int) -> tuple[bytes, int, int] | Ending:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        photos, place = self._ring.fill(info.id)
        # Returned, because DataLoader would wrap what is raised in the worker's traceback.
        try:
            batch = self._maker.make(step, photos)
        except UserError as error:
            return error
        except (OSError, MemoryError) as error:
            return in_one_line(error, step)
        # Pickled here: a thread of the queue would do it in three times as long, while this one waits for it.
        return pickle.dumps(replace(batch, photos=_NO_PHOTOS)), info.id, place
