"""Saving: training waits for the copy to host memory; writing and the commit happen behind it.

The protocol (docs/checkpoints.md):

1. Every rank copies its share into host memory. Training goes on.
2. Every rank writes its file into ``attempts/0004/step-00001200.writing/`` and fsyncs it.
3. Rank 0 gathers sizes and checksums, writes the manifest, fsyncs it and the folder.
4. One rename puts the folder into ``checkpoints/``; that folder is fsynced. This is the commit.
5. Rank 0 removes what retention does not keep: renamed into the attempt's folder, then deleted.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glci_dist.checkpoints.image import Image, layout_of
from glci_dist.checkpoints.manifest import NAME, WHOLE, File, Manifest, folder_name, folders
from glci_dist.checkpoints.retention import Retention, delete, to_delete
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
        """Return when no save is under way; raises ``Superseded`` where a newer attempt forbade one."""
        start = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.stall_seconds += time.perf_counter() - start
        if self._broken is not None:
            raise self._broken

    def go_back(self, step: int) -> None:
        """The run goes on from the checkpoint of ``step``; what was saved after it is no part of it any more."""
        self.wait()
        self.committed = step
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
        step = record["step"]
        try:
            written, error = self._write(step, files)
            answer = self._commit(record, self._world.to_main_behind((written, error)))
            error, size, superseded = self._world.from_main_behind(answer)
        except Exception as failure:
            # A lost rank: the training's own collectives say so too.
            self._broken = failure
            return
        if superseded is not None:
            self._broken = Superseded(superseded)
            return
        self.failed = error
        if error is None:
            self.committed = step
        if self._world.is_main:
            seconds = time.perf_counter() - start
            deleted = self._clear_away() if error is None else ()
            saved = Saved(step, record["phase"], error, size, copy_seconds, seconds, deleted)
            try:
                self._on_saved(saved)
            except Superseded as newer:
                self._broken = newer

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
    ) -> tuple[str | None, int, str | None]:
        """On rank 0: make the files of all ranks a checkpoint. What went wrong, the bytes, who superseded it."""
        if not self._world.is_main:
            return None, 0, None
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
                if final.exists():
                    # Damaged, or of a way that was not taken: it was passed over on resuming.
                    delete(final, self._attempt)
                os.rename(aside, final)
                _sync(self._root)
                return None, sum(file.bytes for file in files.values()), None
        except OSError as failure:
            error = f"rank 0 on {self._world.host}: {failure.strerror or failure}"
        if self._attempt.is_over():
            return error, 0, str(self._attempt.superseded())
        shutil.rmtree(aside, ignore_errors=True)
        return error, 0, None

    def _clear_away(self) -> tuple[str, ...]:
        unwanted = to_delete(self._root, self._retention)
        return tuple(path.name for path in unwanted if delete(path, self._attempt))

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
