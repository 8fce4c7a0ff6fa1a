"""Reading checkpoints: the newest intact one, its tensors and vectors. Runs no code from a file."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from glci_dist.checkpoints.manifest import NETWORKS_FILE, Checkpoint, Damaged, check_files, folders, read
from glci_dist.errors import UserError
from glci_dist.runs.attempts import Attempt


def newest_intact(root: Path, *, damaged: Callable[[Path, str], None]) -> Checkpoint | None:
    """The newest intact checkpoint in ``root``; ``damaged`` is called with the folder of each newer one, and why.

    Raises ``TemporarilyUnreadable``.
    """
    for _, path in folders(root):
        checkpoint, problems = verify_checkpoint(path)
        if checkpoint is not None:
            return checkpoint
        damaged(path, "; ".join(problems))
    return None


def verify_checkpoint(path: Path) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint in folder ``path`` if it is intact, else what is wrong with it.

    Raises ``TemporarilyUnreadable``.
    """
    sys.audit("glci.checkpoint", "verify", path.name)
    try:
        checkpoint = read(path)
        problems = check_files(checkpoint)
        if not problems:
            check_contents(checkpoint)
    except Damaged as error:
        problems = [str(error)]
    return (None, problems) if problems else (checkpoint, [])


def set_aside(path: Path, attempt: Attempt) -> Path:
    """Move a damaged checkpoint into the attempt's folder; returns its new path. Raises ``OSError``.

    The rename fails if a newer attempt owns the run (``Attempt.fenced``).
    """
    names = (f"damaged-{path.name}" + (f".{number}" if number else "") for number in itertools.count())
    aside = next(attempt.folder / name for name in names if not (attempt.folder / name).exists())
    os.rename(path, aside)
    return aside


def check_contents(checkpoint: Checkpoint) -> None:
    """Raise ``Damaged`` unless every file is in the safetensors format and has the ranges of its manifest entry."""
    for name, file in checkpoint.manifest.files.items():
        try:
            with safe_open(checkpoint.path / name, framework="pt") as opened:
                shapes = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise Damaged(f"{name} is not in the safetensors format: {str(error).splitlines()[0]}") from error
        for vector, (start, stop) in file.ranges.items():
            if shapes.get(vector) != [stop - start]:
                raise Damaged(f"{name} does not hold {stop - start} elements of {vector}")
    for vector in checkpoint.manifest.vectors:
        _covering(checkpoint, vector)


def load_tensors(checkpoint: Checkpoint, *, verified: bool = True) -> dict[str, Tensor]:
    """The whole tensors of a checkpoint (those that are equal on every rank), by name.

    Unless ``verified`` (this process has compared the checksums), compares them first and raises ``Damaged``.
    """
    if not verified:
        _verify(checkpoint, NETWORKS_FILE)
    return load_file(checkpoint.path / NETWORKS_FILE)


class CheckpointVectors:
    """The vectors of a checkpoint by name: reads any range, from whichever files hold it."""

    def __init__(self, checkpoint: Checkpoint, *, verified: bool = True) -> None:
        """``verified``: as in ``load_tensors``, when each file is first read."""
        self._checkpoint = checkpoint
        self._verified = set(checkpoint.manifest.files) if verified else set()

    def names(self) -> Sequence[str]:
        return list(self._checkpoint.manifest.vectors)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The elements ``start`` to ``stop`` of a vector, fp32 ``(stop - start,)``."""
        if not 0 <= start <= stop <= self._checkpoint.manifest.vectors[name]:
            raise UserError(f"{self._checkpoint.path}: {name} is too short for the configured network")
        result = torch.empty(stop - start)
        for file, (first, last) in _covering(self._checkpoint, name):
            low, high = max(first, start), min(last, stop)
            if low < high:
                if file not in self._verified:
                    _verify(self._checkpoint, file)
                    self._verified.add(file)
                with safe_open(self._checkpoint.path / file, framework="pt") as opened:
                    result[low - start : high - start] = opened.get_slice(name)[low - first : high - first]
        return result


def _verify(checkpoint: Checkpoint, name: str) -> None:
    for problem in check_files(checkpoint, [name]):
        raise Damaged(problem)


def _covering(checkpoint: Checkpoint, vector: str) -> list[tuple[str, tuple[int, int]]]:
    """The files that hold a vector, with their ranges in order; raises ``Damaged`` unless they cover it."""
    held = sorted(
        ((name, file.ranges[vector]) for name, file in checkpoint.manifest.files.items() if vector in file.ranges),
        key=lambda each: each[1],
    )
    reached = 0
    for _, (start, stop) in held:
        if start != reached:
            raise Damaged(f"elements {reached} to {start} of {vector} are in no file")
        reached = stop
    if reached != checkpoint.manifest.vectors[vector]:
        raise Damaged(f"elements from {reached} on of {vector} are in no file")
    return held
