"""Describes finished tars: counts, sample tables and checksums, for shards of ours and of others."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from glci_dist.data.index import Index, Shard, encode_table, load_index, save_index, table_name, write_whole
from glci_dist.data.processes import in_processes
from glci_dist.data.tars import photo_rows
from glci_dist.errors import UserError


@dataclass(frozen=True)
class Scan:
    """What one tar holds."""

    shard: Shard
    table: bytes
    """Content of its sample table's file."""
    without: int
    """Samples left out of the index, as they have no photo."""


def index_folder(folder: Path, *, processes: int) -> tuple[Index, int]:
    """Write sample tables and index.json for the tars in ``folder``; they become the corpus in name order.

    Returns the index and the number of samples without a photo, which it leaves out. UserError when
    there is no tar, or one is cut, damaged, or has no photo.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder that holds the tars")
    tars = sorted(path for path in folder.iterdir() if path.suffix == ".tar")
    if not tars:
        raise UserError(f"no shards: {folder} holds no .tar file (compressed tars: unpack them first)")
    if (folder / "build.json").exists() and not (folder / "index.json").exists():
        raise UserError(f"{folder} holds an unfinished build; run the same `glci shards build` again")
    shards: list[Shard] = []
    without = 0
    with tqdm(total=len(tars), unit="shard", disable=None) as bar:
        for shard, left_out in in_processes(_index_shard, tars, processes=processes):
            shards.append(shard)
            without += left_out
            bar.update()
    save_index(folder, sorted(shards, key=lambda shard: shard.name))
    return load_index(str(folder)), without


def scan_tar(path: Path, *, name: str) -> Scan:
    """Read the tar at ``path``, which is or will be the shard ``name``. UserError as ``photo_rows``."""
    rows, without = photo_rows(path)
    table = encode_table(rows)
    shard = Shard(name, len(rows), path.stat().st_size, file_sha256(path), hashlib.sha256(table).hexdigest())
    return Scan(shard, table, without)


def file_sha256(path: Path) -> str:
    """Hex digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _index_shard(path: Path) -> tuple[Shard, int]:
    scan = scan_tar(path, name=path.name)
    if not scan.shard.samples:
        raise UserError(f"{path} has no jpg, jpeg, png or webp photo; move it out of the folder")
    try:
        write_whole(path.with_name(table_name(path.name)), scan.table)
    except OSError as fault:
        raise UserError(f"{path.name}'s sample table cannot be written: {fault.strerror}") from fault
    return scan.shard, scan.without
