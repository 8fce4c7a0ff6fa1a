"""`glci checkpoints`: list, verify, show. They only read; a resuming run moves damaged checkpoints aside itself."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

from glci_dist.checkpoints.manifest import (
    MANIFEST_FILE,
    NETWORKS_FILE,
    Damaged,
    TemporarilyUnreadable,
    check_files,
    folder_name,
    folders,
    read,
)
from glci_dist.errors import UserError

_EXAMPLE = """\
example:
  glci checkpoints list runs/faces64
  glci checkpoints verify runs/faces64
  glci checkpoints show runs/faces64 --step 1200

docs/checkpoints.md describes the guarantees and the files.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `checkpoints` with its subcommands; each sets ``run``, a function of the arguments."""
    checkpoints = subparsers.add_parser(
        "checkpoints", help="list, verify and show a run's checkpoints", description=_EXAMPLE
    )
    commands = checkpoints.add_subparsers(dest="checkpoints_command", required=True, metavar="COMMAND")
    listing = commands.add_parser(
        "list",
        help="list checkpoints, newest first",
        description="A line for each checkpoint: its step, phase, age, size, number of ranks and attempt. Files are "
        "compared by\nsize only; `verify` reads them.\n\nexample:\n  glci checkpoints list runs/faces64\n",
    )
    listing.set_defaults(run=_list, is_product=True)
    verify = commands.add_parser(
        "verify",
        help="read every file and compare its checksum",
        description="Prints a line for each checkpoint and exits with 2 if one is damaged.\n\n"
        "example:\n  glci checkpoints verify runs/faces64\n",
    )
    verify.set_defaults(run=_verify)
    show = commands.add_parser(
        "show",
        help="show the contents of one checkpoint",
        description="Files, tensors, optimiser vectors and other state of one checkpoint (the newest by default).\n\n"
        "example:\n  glci checkpoints show runs/faces64 --step 1200\n",
    )
    show.add_argument("--step", type=int, default=None, metavar="N", help="the checkpoint of this step (the newest)")
    show.set_defaults(run=_show, is_product=True)
    for command in (listing, verify, show):
        command.add_argument("folder", metavar="RUN", type=Path, help="the run's folder, such as runs/faces64")


def _list(parsed: argparse.Namespace) -> int:
    for path in _found(parsed.folder):
        try:
            checkpoint = read(path)
            problems = check_files(checkpoint, contents=False)
        except Damaged as damage:
            print(f"{path.name}  DAMAGED: {damage}")
            continue
        except TemporarilyUnreadable as error:
            print(f"{path.name}  UNREADABLE: {error}")
            continue
        manifest = checkpoint.manifest
        kind = "end of " if manifest.ends_phase else ""
        print(
            f"{path.name}  {kind}{manifest.phase}, {_age(time.time() - manifest.time)} old, "
            f"{checkpoint.bytes / 2**20:.1f} MiB, {manifest.world_size} rank(s), attempt {manifest.attempt}"
            + (f"  DAMAGED: {'; '.join(problems)}" if problems else "")
        )
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from tqdm import tqdm

    from glci_dist.checkpoints.reading import verify_checkpoint

    damaged = 0
    for path in tqdm(_found(parsed.folder), desc="verify", unit="checkpoint", leave=False, disable=None):
        try:
            _, problems = verify_checkpoint(path)
        except TemporarilyUnreadable as error:
            raise UserError(f"{error}: whether it is whole cannot be told") from error
        damaged += bool(problems)
        tqdm.write(f"{path.name}  " + (f"DAMAGED: {'; '.join(problems)}" if problems else "whole"))
    if damaged:
        raise UserError(
            f"{damaged} checkpoint(s) of {parsed.folder} are damaged: the run sets them aside when it resumes, "
            "and goes on from the newest that is whole"
        )
    return 0


def _show(parsed: argparse.Namespace) -> int:
    from safetensors import safe_open

    found = _found(parsed.folder)
    wanted = [path for path in found if parsed.step is None or path.name == folder_name(parsed.step)]
    if not wanted:
        there = ", ".join(str(int(path.name.partition("-")[2])) for path in found)
        raise UserError(f"{parsed.folder} has no checkpoint of step {parsed.step}: choose one of {there}")
    try:
        checkpoint = read(wanted[0])
    except Damaged as damage:
        raise UserError(f"{wanted[0]} is damaged: {damage}") from damage
    except TemporarilyUnreadable as error:
        raise UserError(str(error)) from error
    manifest = checkpoint.manifest
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.time))
    print(f"{checkpoint.path}")
    print(f"state before step {manifest.step}, after a step of phase {manifest.phase}")
    print(f"goes on from        {'the start' if manifest.parent is None else f'step {manifest.parent}'}")
    print(f"written by          attempt {manifest.attempt}, {manifest.world_size} rank(s), at {moment}")
    samples = manifest.facts["samples"]
    print(f"samples used        {samples['count']:,} (checksum {samples['digest']})")
    health = manifest.facts["health"]
    digest = hashlib.sha256(manifest.facts["config"].encode()).hexdigest()
    print(f"configuration       SHA-256 {digest[:16]} (whole in {MANIFEST_FILE})")
    print(f"skipped steps       {', '.join(map(str, health['passed_over'])) or 'none'}")
    for name, file in manifest.files.items():
        print(f"{name}  {file.bytes:,} bytes, XXH3-128 {file.xxh3_128}")
        for vector, (start, stop) in file.ranges.items():
            print(f"    {vector}  elements {start:,} to {stop:,} of {manifest.vectors[vector]:,}")
    with safe_open(checkpoint.path / NETWORKS_FILE, framework="pt") as opened:
        for key in sorted(opened.keys()):
            part = opened.get_slice(key)
            print(f"    {key}  {part.get_dtype()} {json.dumps(part.get_shape())}")
    return 0


def _found(run: Path) -> list[Path]:
    if not run.is_dir():
        raise UserError(f"{run} is no folder: name the folder of a run, such as runs/demo")
    found = [path for _, path in folders(run / "checkpoints")]
    if not found:
        raise UserError(f"{run} has no checkpoint yet: the first comes after checkpoints.every steps, or a phase's end")
    return found


def _age(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
