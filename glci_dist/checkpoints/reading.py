"""Reading checkpoints: the newest that is whole, its tensors, its vectors. Runs no code from a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from glci_dist.checkpoints.manifest import WHOLE, Checkpoint, Damaged, check_files, folders, read
from glci_dist.errors import UserError

Told = Callable[[Path, str], None]
"""Is given a checkpoint's folder and what is wrong with it."""


def newest(root: Path, *, damaged: Told) -> Checkpoint | None:
    """The newest checkpoint in ``root`` all of whose files have their checksums; ``damaged`` hears of newer ones."""
    for _, path in folders(root):
        try:
            checkpoint = read(path)
            problems = check_files(checkpoint)
            if not problems:
                check_contents(checkpoint)
                return checkpoint
        except Damaged as error:
            problems = [str(error)]
        damaged(path, "; ".join(problems))
    return None


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint's folder so that it is none any more; returns where it lies."""
    for number in range(1000):
        aside = path.with_name(f"damaged-{path.name}" + (f".{number}" if number else ""))
        if not aside.exists():
            os.rename(path, aside)
            return aside
    raise UserError(f"{path.parent} holds a thousand damaged copies of {path.name}: remove them")


def check_contents(checkpoint: Checkpoint) -> None:
    """Raise ``Damaged`` unless every file is in the safetensors format, with the ranges of its manifest entry."""
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


def load_networks(checkpoint: Checkpoint, networks: Mapping[str, nn.Module]) -> None:
    """Fill ``networks`` (by name) with a checkpoint's tensors; raises ``UserError`` if they do not fit."""
    tensors = load_file(checkpoint.path / WHOLE)
    for name, network in networks.items():
        state = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{checkpoint.path} does not fit the configured {name} network: resume with the configuration it has"
            ) from error


class SavedVectors:
    """The vectors of a checkpoint (``state.Vectors``): any range, from whichever files hold it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def names(self) -> Sequence[str]:
        return list(self._checkpoint.manifest.vectors)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        if not 0 <= start <= stop <= self._checkpoint.manifest.vectors[name]:
            raise UserError(f"{self._checkpoint.path}: {name} is too short for the configured network")
        result = torch.empty(stop - start)
        for file, (first, last) in _covering(self._checkpoint, name):
            low, high = max(first, start), min(last, stop)
            if low < high:
                with safe_open(self._checkpoint.path / file, framework="pt") as opened:
                    result[low - start : high - start] = opened.get_slice(name)[low - first : high - first]
        return result


def _covering(checkpoint: Checkpoint, vector: str) -> list[tuple[str, tuple[int, int]]]:
    """The files that hold a vector with their ranges in order; raises ``Damaged`` unless they make it whole."""
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
