"""Saving and reading a run's state: written aside, then renamed.

A checkpoint is a folder ``step-00001200``: ``networks.safetensors`` with every network's tensors
under the network's name, one file of optimiser states a rank, and ``manifest.json``, which names
each file with its size and SHA-256. A folder without a manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glci_dist.cluster.world import World
from glci_dist.errors import UserError

_NETWORKS = "networks.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """One saved state."""

    path: Path
    step: int
    """The next step to run."""
    phase: str
    world_size: int
    zero_stage: int


def save(
    folder: Path,
    *,
    step: int,
    phase: str,
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, Any],
    zero_stage: int,
    world: World,
) -> Path:
    """Write the state before step ``step``; every rank calls it. Returns the checkpoint's folder.

    ``networks`` are whole and equal on every rank; ``optimizers`` are this rank's state dictionaries.
    """
    final = folder / f"step-{step:08d}"
    aside = folder / f".{final.name}.writing"
    if world.is_main:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    world.from_main(None)
    written = [aside / _optimizer_file(world.rank, world.size)]
    torch.save(dict(optimizers), written[0])
    if world.is_main:
        written.append(aside / _NETWORKS)
        save_file(_named_tensors(networks), written[1])
    entries = world.to_main({path.name: _describe(path) for path in written})
    if world.is_main:
        manifest = {
            "format": "glci-checkpoint-1",
            "step": step,
            "phase": phase,
            "world_size": world.size,
            "zero_stage": zero_stage,
            "files": {name: entry for rank in entries for name, entry in sorted(rank.items())},
        }
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
        _describe(aside / "manifest.json")
        if final.exists():
            shutil.rmtree(final)
        os.rename(aside, final)
        _sync_folder(folder)
    world.from_main(None)
    return final


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in ``folder``, if any."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            manifest = json.loads((path / "manifest.json").read_text())
        except FileNotFoundError:
            continue
        return Checkpoint(path, manifest["step"], manifest["phase"], manifest["world_size"], manifest["zero_stage"])
    return None


def load_networks(checkpoint: Checkpoint, networks: Mapping[str, nn.Module]) -> None:
    """Fill ``networks`` (by name) with a checkpoint's tensors; raises ``UserError`` if they do not fit."""
    tensors = load_file(checkpoint.path / _NETWORKS)
    for name, network in networks.items():
        state = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{checkpoint.path} does not fit the configured {name} network: resume with the configuration it has"
            ) from error


def load_optimizers(checkpoint: Checkpoint, *, zero_stage: int, world: World) -> dict[str, Any]:
    """This rank's optimiser states; raises ``UserError`` for a checkpoint of another world or ZeRO stage."""
    if (checkpoint.world_size, checkpoint.zero_stage) != (world.size, zero_stage):
        raise UserError(
            f"{checkpoint.path} was saved by {checkpoint.world_size} ranks with engine.zero_stage="
            f"{checkpoint.zero_stage}, this is a world of {world.size} with {zero_stage}: resume it as it was saved"
        )
    return torch.load(checkpoint.path / _optimizer_file(world.rank, world.size), weights_only=True)


def _named_tensors(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": tensor.detach().cpu().contiguous().clone()
        for name, network in networks.items()
        for key, tensor in network.state_dict().items()
    }


def _optimizer_file(rank: int, world_size: int) -> str:
    return f"optimizers-rank{rank:05d}-of-{world_size:05d}.pt"


def _describe(path: Path) -> dict[str, Any]:
    """Size and checksum of a file that is on the disk for good."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
