"""`glci shards verify`: finds changed, truncated, missing or extra shards and sample tables, and bad photos."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from glci_dist.data.foreign import is_table
from glci_dist.data.index import Index, Shard, parse_table, table_name
from glci_dist.data.location import is_remote, local_path
from glci_dist.data.names import printable
from glci_dist.data.scan import file_sha256
from glci_dist.data.webdataset_samples import tar_samples
from glci_dist.errors import UserError, out_of_memory


@dataclass(frozen=True)
class VerifyFinding:
    """A file that does not match the index, or a photo that the loader refuses."""

    name: str
    """Of the file; ``<shard>/<key>`` of a photo."""
    reason: str
    kind: str = "file"
    """``file``, ``extra`` (a file that the index does not name), ``photo``; ``left out``: not a fault."""


def check_shards(index: Index) -> None:
    """A cheap check before a run: every local shard exists and has the index's size; UserError for the first bad one.

    Remote shards are checked when they are fetched.
    """
    if is_remote(index.root):
        return
    folder = Path(local_path(index.root))
    sizes = _sizes(folder)
    for shard in index.shards:
        reason = _bad_size(shard, sizes)
        table = table_name(shard.name)
        if reason is None and table not in sizes:
            reason = f"its sample table {table} is missing"
        if reason:
            raise UserError(
                f"the index does not match its shard: {folder / shard.name}: {reason}; "
                "`glci shards verify` names every bad one"
            )


def verify_shards(index: Index, *, quick: bool, threads: int) -> tuple[VerifyFinding, ...]:
    """Every fault in the local folder of ``index``; ``quick``: without the tars' checksums and the photos.

    The photos of intact shards are decoded by the loader's function.
    """
    folder = Path(local_path(index.root))
    sizes = _sizes(folder)
    ours = {name for shard in index.shards for name in (shard.name, table_name(shard.name))}
    # A file of this package by its name; hidden ones are ignored.
    endings = (".tar", table_name(".tar"), ".tmp")
    others = [name for name in sorted(sizes) if name not in ours and name[0] != "." and name.endswith(endings)]
    faults = [_extra(folder / name) for name in others]
    size = sum(shard.bytes for shard in index.shards)
    with tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar, ThreadPoolExecutor(threads) as pool:

        def check(shard: Shard) -> list[VerifyFinding]:
            faults = list(_faults(folder, shard, sizes, quick, bar.update))
            if quick:
                bar.update(shard.bytes)
            return faults

        for found in pool.map(check, index.shards):
            faults.extend(found)
    return tuple(faults)


def _extra(path: Path) -> VerifyFinding:
    """The fault of a file that the index does not name, with what to do."""
    name, told = printable(path.name), _extra_tar(path) if path.name.endswith(".tar") else _extra_table(path)
    if told is None:
        return VerifyFinding(name, "is left out of the index: no photo is in it", "left out")
    return VerifyFinding(name, f"is extra: the index does not name it{told}", "extra")


def _extra_table(path: Path) -> str:
    if path.name.endswith(".tmp"):
        return "; a build or an index that was stopped left it: remove it"
    try:
        if is_table(path):
            return "; the sample table of a tar that is gone or left out: `glci shards index` removes it"
    except OSError as fault:
        return f", and it cannot be read: {fault.strerror}"
    return ", and it is no sample table; move it out of the folder"


def _extra_tar(path: Path) -> str | None:
    """None for a tar without a photo, which is rightly left out."""
    if not path.stat().st_size:
        return ", and it is empty; get the tar again, or move it out of the folder"
    try:
        samples = tar_samples(path)
    except UserError as fault:
        return f"; move the tar out of the folder: {fault}"
    other = ", or take its photos in with `glci shards index`" if samples.rows else ": none is a sample's photo"
    return f"; move the tar out of the folder{other}" if samples.images else None


def _faults(
    folder: Path, shard: Shard, sizes: dict[str, int], quick: bool, advance: Callable[[int], object]
) -> Iterator[VerifyFinding]:
    reason = _bad_size(shard, sizes)
    if reason is None and not quick and file_sha256(folder / shard.name) != shard.sha256:
        reason = "is changed: its checksum differs from the index's"
    if reason:
        yield VerifyFinding(shard.name, reason)
    table = table_name(shard.name)
    if table not in sizes:
        yield VerifyFinding(table, "is missing")
        return
    content = (folder / table).read_bytes()
    if hashlib.sha256(content).hexdigest() != shard.table_sha256:
        yield VerifyFinding(table, "is changed or cut: its checksum differs from the index's")
        return
    try:
        rows = parse_table(content, shard)
    except UserError as fault:
        yield VerifyFinding(table, str(fault))
        return
    if reason is None and not quick:
        yield from _bad_photos(folder / shard.name, rows, advance)


def _bad_photos(path: Path, rows: NDArray[np.void], advance: Callable[[int], object]) -> Iterator[VerifyFinding]:
    # Imported here: the check before a run, also on a submitting machine, needs no decoder.
    from glci_dist.data.decode import DecodeError, decode

    with open(path, "rb") as file:
        for offset, length, key in rows.tolist():
            name = printable(f"{path.name}/{key.decode(errors='replace')}")
            try:
                decode(os.pread(file.fileno(), length, offset), short_edge=None)
            except DecodeError as error:
                yield VerifyFinding(name, f"cannot be decoded: {error}", kind="photo")
            except MemoryError as error:
                raise out_of_memory(error, name) from error
            advance(length)


def _bad_size(shard: Shard, sizes: dict[str, int]) -> str | None:
    found = sizes.get(shard.name)
    if found is None:
        return "is missing"
    if found < shard.bytes:
        return f"is cut: {found} bytes, the index says {shard.bytes}"
    if found > shard.bytes:
        return f"is changed: {found} bytes, the index says {shard.bytes}"
    return None


def _sizes(folder: Path) -> dict[str, int]:
    """Size of each file in ``folder``; one listing, which is cheap on a network file system."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError as fault:
        raise UserError(f"{folder} cannot be listed: {fault.strerror}") from fault
