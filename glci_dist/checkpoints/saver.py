"""Saving: training waits for the copy to host memory; writing and the commit happen behind it.

The protocol (docs/checkpoints.md):

1. Every rank copies its share into host memory. Training goes on.
2. Every rank writes its file into ``attempts/0004/step-00001200.writing/`` and fsyncs it.
3. Rank 0 gathers sizes and checksums, writes the manifest, fsyncs it and the folder.
4. One rename puts the folder into ``checkpoints/``; that folder is fsynced. This is the commit.
5. Rank 0 removes what retention does not keep: renamed into the attempt's folder, then deleted. Before that
   one of the newest that are kept has been read back whole.
6. Rank 0 tells the others what became of it: no rank's save ends before.

``sys.audit`` tells of each stage (``glci.checkpoint``, stage, step), for tests and tracing.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from glci_dist.checkpoints.image import Image, layout_of
from glci_dist.checkpoints.manifest import (
    NAME,
    WHOLE,
    Checkpoint,
    File,
    Manifest,
    Unreadable,
    folder_name,
    folders,
)
from glci_dist.checkpoints.reading import examine, set_aside
from glci_dist.checkpoints.retention import Retention, delete, sort_out
from glci_dist.checkpoints.state import State
from glci_dist.cluster.world import World
from glci_dist.errors import Superseded
from glci_dist.runs.attempts import Attempt


@dataclass(frozen=True)
class Saved:
    """What became of one save; the same on every rank, but for the seconds."""

    step: int
    phase: str
    error: str | None
    """Why there is no such checkpoint."""
    bytes: int
    """Over all ranks."""
    copy_seconds: float
    """That training waited for the copy."""
    write_seconds: float
    """From the end of the copy to the commit."""
    deleted: tuple[str, ...] = ()
    """Checkpoints that retention removed."""
    damaged: tuple[tuple[Path, str, Path], ...] = ()
    """Checkpoints that were not whole when they were read back: where they were, what was wrong, where they lie."""
    kept: str | None = None
    """Why nothing more was removed, if retention could not do its work: the disk fills up."""


@dataclass
class _Cleared:
    """What retention did after a save; see ``Saved``."""

    deleted: list[str] = field(default_factory=list)
    damaged: list[tuple[Path, str, Path]] = field(default_factory=list)
    problem: str | None = None


class Saver:
    """Writes checkpoints of one attempt, at most one at a time. Every rank calls its methods alike."""

    def __init__(
        self,
        root: Path,
        attempt: Attempt,
        world: World,
        retention: Retention,
        *,
        on_saved: Callable[[Saved], None],
    ) -> None:
        """``on_saved`` is called from another thread, on rank 0 alone."""
        self._root, self._attempt, self._world, self._retention = root, attempt, world, retention
        self._on_saved = on_saved
        self.committed: int | None = None
        """Step of the newest checkpoint of the run, if it has one; to be set where the run goes on from one."""
        self.failed: str | None = None
        """Why the last save did not become a checkpoint, if it did not."""
        self.verified: set[int] = set()
        """Steps of checkpoints that this attempt has read and found whole (rank 0)."""
        self._images: dict[str, Image] = {}
        self._thread: threading.Thread | None = None
        self._saving: int | None = None
        self._broken: BaseException | None = None
        self.stall_seconds = 0.0
        """That training waited for copies and for earlier saves, since it was last set to 0."""

    @property
    def saving(self) -> int | None:
        """Step of the checkpoint that is being written; None: none is."""
        return self._saving if self._thread is not None and self._thread.is_alive() else None

    @property
    def is_superseded(self) -> bool:
        """Whether a newer attempt forbade the last save, as far as this rank knows."""
        return isinstance(self._broken, Superseded)

    def save(self, state: State, *, step: int, phase: str, ends_phase: bool) -> None:
        """Copy the state before ``step`` and begin to write it; waits for an earlier save to end first."""
        self.wait()
        start = time.perf_counter()
        sys.audit("glci.checkpoint", "copy", step)
        files = self._copy(state)
        copy_seconds = time.perf_counter() - start
        self.stall_seconds += copy_seconds
        record = {
            "step": step,
            "phase": phase,
            "ends_phase": ends_phase,
            "parent": self.committed,
            "attempt": self._attempt.number,
            "world_size": self._world.size,
            "facts": dict(state.facts),
            "vectors": {name: part.total for name, part in state.parts.items()},
        }
        self._saving = step
        self._thread = threading.Thread(
            target=self._run, args=(record, files, copy_seconds), name=f"save-{step}", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is under way; raises ``Superseded``, on every rank, where a newer attempt forbade one."""
        self.pause()
        if self._broken is not None:
            raise self._broken

    def pause(self) -> None:
        """Return when no save is under way, whatever became of it."""
        start = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.stall_seconds += time.perf_counter() - start

    def go_back(self, step: int) -> None:
        """The run goes on from the checkpoint of ``step``; what was saved after it is no part of it any more."""
        self.wait()
        self.committed = step
        self.verified = {each for each in self.verified if each <= step}
        if self._world.is_main:
            with self._attempt.fenced():
                for newer, path in folders(self._root):
                    if newer > step:
                        delete(path, self._attempt)
        self._world.barrier()

    def _copy(self, state: State) -> dict[str, dict[str, tuple[int, int]]]:
        """Fill this rank's images; returns, for each file, which ranges of which vectors it holds."""
        contents = {_part_name(self._world): {name: list(part.pieces) for name, part in state.parts.items()}}
        if self._world.is_main:
            contents[WHOLE] = {name: [tensor] for name, tensor in state.whole.items()}
        for file, tensors in contents.items():
            # A vector's pieces may change their shapes from save to save, but not what they add up to.
            pieces = {name: [piece.detach() for piece in found] for name, found in tensors.items()}
            if file != WHOLE:
                pieces = {name: [piece.reshape(-1) for piece in found] for name, found in pieces.items()}
            layout = layout_of(pieces)
            image = self._images.get(file)
            if image is None or image.layout != layout:
                image = self._images[file] = Image(layout, pinned=self._world.device.type == "cuda")
            for name, found in pieces.items():
                image.fill(name, found)
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        ranges = {name: (part.start, part.stop) for name, part in state.parts.items()}
        return {file: ranges if file != WHOLE else {} for file in contents}

    def _run(self, record: dict[str, Any], files: dict[str, dict[str, tuple[int, int]]], copy_seconds: float) -> None:
        """The save, in its own thread; never raises, since nobody would see it."""
        start = time.perf_counter()
        try:
            ranks = self._world.to_main_behind(self._write(record["step"], files))
            answer = self._finish(record, ranks, copy_seconds, start) if self._world.is_main else None
            self.failed, superseded = self._world.from_main_behind(answer)
        except Exception as failure:
            # A lost rank: the training's own collectives say so too.
            self._broken = failure
            return
        if superseded is not None:
            self._broken = Superseded(superseded)
        elif self.failed is None:
            self.committed = record["step"]

    def _finish(
        self,
        record: dict[str, Any],
        ranks: list[tuple[dict[str, File], str | None]],
        copy_seconds: float,
        start: float,
    ) -> tuple[str | None, str | None]:
        """Commit, clear away and tell, on rank 0; what went wrong, and the newer attempt that forbade it."""
        step = record["step"]
        try:
            error, size = self._commit(record, ranks)
            seconds = time.perf_counter() - start
            if error is None:
                self.committed = step
            cleared = self._clear_away() if error is None else _Cleared()
            self._on_saved(
                Saved(
                    *(step, record["phase"], error, size, copy_seconds, seconds),
                    deleted=tuple(cleared.deleted),
                    damaged=tuple(cleared.damaged),
                    kept=cleared.problem,
                )
            )
        except Superseded as newer:
            return str(newer), str(newer)
        return error, None

    def _write(self, step: int, files: dict[str, dict[str, tuple[int, int]]]) -> tuple[dict[str, File], str | None]:
        """Write this rank's files; their entries, or what went wrong."""
        aside = self._aside(step)
        written: dict[str, File] = {}
        try:
            sys.audit("glci.checkpoint", "write", step)
            # Not its parents: the attempt's own folder is gone where a newer attempt took over.
            with suppress(FileExistsError):
                aside.mkdir()
            for name, ranges in files.items():
                image = self._images[name]
                written[name] = File(image.bytes, image.write(aside / name), ranges)
        except OSError as error:
            return {}, f"rank {self._world.rank} on {self._world.host}: {error.strerror or error}"
        return written, None

    def _commit(
        self, record: dict[str, Any], ranks: list[tuple[dict[str, File], str | None]]
    ) -> tuple[str | None, int]:
        """Make the files of all ranks a checkpoint: what went wrong, the bytes. Raises ``Superseded``."""
        step = record["step"]
        aside, final = self._aside(step), self._root / folder_name(step)
        error = next((error for _, error in ranks if error), None)
        try:
            if error is None:
                files = {name: file for written, _ in ranks for name, file in sorted(written.items())}
                manifest = Manifest(**record, time=round(time.time(), 3), files=files)
                _write_whole(aside / NAME, manifest.encode())
                _sync(aside)
                sys.audit("glci.checkpoint", "commit", step)
                self.verified.discard(step)
                if final.exists():
                    # Damaged, or of a way that was not taken: it was passed over on resuming.
                    delete(final, self._attempt)
                os.rename(aside, final)
                _sync(self._root)
                return None, sum(file.bytes for file in files.values())
        except OSError as failure:
            error = f"rank 0 on {self._world.host}: {failure.strerror or failure}"
        if self._attempt.is_over():
            raise self._attempt.superseded()
        shutil.rmtree(aside, ignore_errors=True)
        return error, 0

    def _clear_away(self) -> _Cleared:
        """Delete what is not kept, unless one that is kept turns out to be damaged; that one is set aside instead."""
        cleared = _Cleared()
        try:
            found = sort_out(self._root, self._retention)
            if found.unwanted:
                self._read_back(found.newest, cleared)
            # Damaged ones take nobody's place: the next save counts anew.
            for each in found.unwanted if not cleared.damaged else ():
                delete(each.path, self._attempt)
                cleared.deleted.append(each.path.name)
        except OSError as failure:
            # An older attempt can remove nothing, and ends itself soon.
            if not self._attempt.is_over():
                cleared.problem = f"{failure.filename or self._root}: {failure.strerror or failure}"
        except Unreadable as failure:
            cleared.problem = str(failure)
        return cleared

    def _read_back(self, newest: list[Checkpoint], cleared: _Cleared) -> None:
        """See to it that one of these is known to be whole; those that were not are set aside."""
        if any(checkpoint.step in self.verified for checkpoint in newest):
            return
        for checkpoint in newest:
            whole, problems = examine(checkpoint.path)
            if whole is not None:
                self.verified.add(checkpoint.step)
                return
            with self._attempt.fenced():
                aside = set_aside(checkpoint.path, self._attempt)
            cleared.damaged.append((checkpoint.path, "; ".join(problems), aside))

    def _aside(self, step: int) -> Path:
        return self._attempt.folder / f"{folder_name(step)}.writing"


def _part_name(world: World) -> str:
    return f"vectors-{world.rank + 1:05d}-of-{world.size:05d}.safetensors"


def _write_whole(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
