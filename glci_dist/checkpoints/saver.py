"""Asynchronous saving: training waits for the copy to host memory; a thread writes and commits.

The protocol (docs/checkpoints.md):

1. Every rank copies its share into host memory. Training continues.
2. Every rank writes its file into ``attempts/0004/step-00001200.writing/`` and fsyncs it.
3. Rank 0 gathers sizes and checksums, writes the manifest, fsyncs it and the folder.
4. One rename puts the folder into ``checkpoints/``; that folder is fsynced. This is the commit.
5. Rank 0 deletes what retention does not keep (renamed into the attempt's folder first), once one of the newest kept
   checkpoints has been read back and found intact.
6. Rank 0 broadcasts the outcome: no rank's save ends before.

Each stage raises an audit event (``sys.audit``: ``glci.checkpoint``, stage, step), for tests and tracing.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from glci_dist.checkpoints.manifest import (
    MANIFEST_FILE,
    NETWORKS_FILE,
    Checkpoint,
    File,
    Manifest,
    TemporarilyUnreadable,
    folder_name,
    folders,
)
from glci_dist.checkpoints.reading import set_aside, verify_checkpoint
from glci_dist.checkpoints.registry import CheckpointState
from glci_dist.checkpoints.retention import delete, plan_retention
from glci_dist.checkpoints.safetensors_buffer import SafetensorsBuffer, layout_of
from glci_dist.cluster.world import World
from glci_dist.config import CheckpointsConfig
from glci_dist.errors import Superseded
from glci_dist.runs.attempts import Attempt


@dataclass(frozen=True)
class SaveResult:
    """The outcome of one save; equal on every rank, except for the seconds."""

    step: int
    phase: str
    error: str | None
    """Why the save failed; None: it did not."""
    bytes: int
    """Over all ranks."""
    copy_seconds: float
    """For which training waited for the copy."""
    write_seconds: float
    """From the end of the copy to the commit."""
    deleted: tuple[str, ...] = ()
    """Checkpoints that retention deleted."""
    damaged: tuple[tuple[Path, str, Path], ...] = ()
    """Checkpoints found damaged when read back: old path, what is wrong, new path."""
    retention_error: str | None = None
    """Why retention failed, so that the disk fills up; None: it did not."""


class Saver:
    """Writes checkpoints of one attempt, at most one at a time. Every rank calls the same methods."""

    def __init__(
        self,
        root: Path,
        attempt: Attempt,
        world: World,
        retention: CheckpointsConfig,
        *,
        on_saved: Callable[[SaveResult], None],
    ) -> None:
        """``on_saved`` is called from another thread, only on rank 0."""
        self._root, self._attempt, self._world, self._retention = root, attempt, world, retention
        self._on_saved = on_saved
        self.committed: int | None = None
        """Step of the run's newest checkpoint, if it has one; a resuming run sets it."""
        self.failed: str | None = None
        """Why the last save failed; None: it did not."""
        self.verified: set[int] = set()
        """Steps of checkpoints that this attempt has read and found intact (rank 0)."""
        self._buffers: dict[str, SafetensorsBuffer] = {}
        self._thread: threading.Thread | None = None
        self._saving: int | None = None
        self._broken: BaseException | None = None
        self.stall_seconds = 0.0
        """For which training waited for copies and for earlier saves, since it was last set to 0."""

    @property
    def saving(self) -> int | None:
        """Step of the checkpoint that is being written, if any."""
        return self._saving if self._thread is not None and self._thread.is_alive() else None

    @property
    def is_superseded(self) -> bool:
        """Whether the last save failed because a newer attempt owns the run, as far as this rank knows."""
        return isinstance(self._broken, Superseded)

    def save(self, state: CheckpointState, *, step: int, phase: str, ends_phase: bool) -> None:
        """Wait for an earlier save to end, copy the state before ``step``, and begin to write it."""
        self.wait()
        start = time.perf_counter()
        sys.audit("glci.checkpoint", "copy", step)
        files = self._copy(state)
        copy_seconds = time.perf_counter() - start
        self.stall_seconds += copy_seconds
        # Without time and files until the commit.
        manifest = Manifest(
            step=step,
            phase=phase,
            ends_phase=ends_phase,
            parent=self.committed,
            attempt=self._attempt.number,
            time=0.0,
            world_size=self._world.size,
            facts=dict(state.extra_state),
            vectors={name: part.total for name, part in state.vectors.items()},
            files={},
        )
        self._saving = step
        self._thread = threading.Thread(
            target=self._run, args=(manifest, files, copy_seconds), name=f"save-{step}", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save in progress; raises ``Superseded`` on every rank if a newer attempt owns the run."""
        self.join()
        if self._broken is not None:
            raise self._broken

    def join(self) -> None:
        """Wait for the save in progress, whatever its outcome."""
        start = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.stall_seconds += time.perf_counter() - start

    def rewind(self, step: int) -> None:
        """Make the checkpoint of ``step`` the newest: delete later ones."""
        self.wait()
        self.committed = step
        self.verified = {each for each in self.verified if each <= step}
        if self._world.is_main:
            with self._attempt.fenced():
                for newer, path in folders(self._root):
                    if newer > step:
                        delete(path, self._attempt)
        self._world.barrier()

    def _copy(self, state: CheckpointState) -> dict[str, dict[str, tuple[int, int]]]:
        """Copy the state into this rank's buffers; returns each file's ranges of vectors."""
        contents = {_vectors_file(self._world): {name: list(part.pieces) for name, part in state.vectors.items()}}
        if self._world.is_main:
            contents[NETWORKS_FILE] = {name: [tensor] for name, tensor in state.tensors.items()}
        for file, tensors in contents.items():
            # Flat, because a vector's pieces may change their shapes from save to save, but not their total size.
            pieces = {name: [piece.detach() for piece in found] for name, found in tensors.items()}
            if file != NETWORKS_FILE:
                pieces = {name: [piece.reshape(-1) for piece in found] for name, found in pieces.items()}
            layout = layout_of(pieces)
            buffer = self._buffers.get(file)
            if buffer is None or buffer.layout != layout:
                buffer = self._buffers[file] = SafetensorsBuffer(layout, pinned=self._world.device.type == "cuda")
            for name, found in pieces.items():
                buffer.fill(name, found)
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        ranges = {name: (part.start, part.stop) for name, part in state.vectors.items()}
        return {file: ranges if file != NETWORKS_FILE else {} for file in contents}

    def _run(self, manifest: Manifest, files: dict[str, dict[str, tuple[int, int]]], copy_seconds: float) -> None:
        """The save, in its own thread; never raises, as nothing would catch it."""
        start = time.perf_counter()
        try:
            ranks = self._world.gather_objects_for_checkpoint(self._write(manifest.step, files))
            answer = self._finish(manifest, ranks, copy_seconds, start) if self._world.is_main else None
            self.failed, superseded = self._world.broadcast_object_for_checkpoint(answer)
        except Exception as failure:
            # A lost rank: training's own collectives fail too, and report it.
            self._broken = failure
            return
        if superseded is not None:
            self._broken = Superseded(superseded)
        elif self.failed is None:
            self.committed = manifest.step

    def _finish(
        self,
        manifest: Manifest,
        ranks: list[tuple[dict[str, File], str | None]],
        copy_seconds: float,
        start: float,
    ) -> tuple[str | None, str | None]:
        """Commit, apply retention and call ``on_saved``, on rank 0; returns the error, and the newer attempt if any."""
        try:
            error, size = self._commit(manifest, ranks)
            seconds = time.perf_counter() - start
            result = SaveResult(manifest.step, manifest.phase, error, size, copy_seconds, seconds)
            if error is None:
                self.committed = manifest.step
                result = self._apply_retention(result)
            self._on_saved(result)
        except Superseded as newer:
            return str(newer), str(newer)
        return error, None

    def _write(self, step: int, files: dict[str, dict[str, tuple[int, int]]]) -> tuple[dict[str, File], str | None]:
        """Write this rank's files; returns their manifest entries, or the error."""
        aside = self._writing_folder(step)
        written: dict[str, File] = {}
        try:
            sys.audit("glci.checkpoint", "write", step)
            # Without parents: the attempt's folder is gone once a newer attempt took over.
            with suppress(FileExistsError):
                aside.mkdir()
            for name, ranges in files.items():
                buffer = self._buffers[name]
                written[name] = File(buffer.bytes, buffer.write(aside / name), ranges)
        except OSError as error:
            return {}, f"rank {self._world.rank} on {self._world.host}: {error.strerror or error}"
        return written, None

    def _commit(self, manifest: Manifest, ranks: list[tuple[dict[str, File], str | None]]) -> tuple[str | None, int]:
        """Commit the files of all ranks as a checkpoint; returns the error, and the bytes. Raises ``Superseded``."""
        step = manifest.step
        aside, final = self._writing_folder(step), self._root / folder_name(step)
        error = next((error for _, error in ranks if error), None)
        try:
            if error is None:
                files = {name: file for written, _ in ranks for name, file in sorted(written.items())}
                manifest = replace(manifest, time=round(time.time(), 3), files=files)
                _write_whole(aside / MANIFEST_FILE, manifest.encode())
                _sync(aside)
                sys.audit("glci.checkpoint", "commit", step)
                self.verified.discard(step)
                if final.exists():
                    # Damaged, or of an abandoned branch: the run did not resume from it.
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

    def _apply_retention(self, result: SaveResult) -> SaveResult:
        """Delete what is not kept; if a checkpoint that is kept is found damaged, move that one aside instead."""
        deleted: list[str] = []
        damaged: list[tuple[Path, str, Path]] = []
        problem: str | None = None
        try:
            newest, unwanted = plan_retention(self._root, self._retention)
            if unwanted:
                self._read_back(newest, damaged)
            # If a checkpoint that should be kept is damaged, delete nothing this time.
            for each in unwanted if not damaged else ():
                delete(each.path, self._attempt)
                deleted.append(each.path.name)
        except OSError as failure:
            # A superseded attempt can delete nothing, and soon ends.
            if not self._attempt.is_over():
                problem = f"{failure.filename or self._root}: {failure.strerror or failure}"
        except TemporarilyUnreadable as failure:
            problem = str(failure)
        return replace(result, deleted=tuple(deleted), damaged=tuple(damaged), retention_error=problem)

    def _read_back(self, newest: list[Checkpoint], damaged: list[tuple[Path, str, Path]]) -> None:
        """Verify checkpoints until one is intact, unless one has been verified already; move damaged ones aside."""
        if any(checkpoint.step in self.verified for checkpoint in newest):
            return
        for checkpoint in newest:
            whole, problems = verify_checkpoint(checkpoint.path)
            if whole is not None:
                self.verified.add(checkpoint.step)
                return
            with self._attempt.fenced():
                aside = set_aside(checkpoint.path, self._attempt)
            damaged.append((checkpoint.path, "; ".join(problems), aside))

    def _writing_folder(self, step: int) -> Path:
        return self._attempt.folder / f"{folder_name(step)}.writing"


def _vectors_file(world: World) -> str:
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
