"""`glci shards build`: photos to shards, the same bytes for the same photos and options.

Each shard is a task of its own, made aside and renamed. A build that was stopped keeps its finished
shards: the same command completes it.
"""

from __future__ import annotations

import functools
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from glci_dist.data.draws import generator
from glci_dist.data.index import Index, Shard, load_index, save_index, table_name, write_whole
from glci_dist.data.photos import BadPhoto, to_shard_jpeg
from glci_dist.data.plan import (
    BuildJournal,
    BuildOptions,
    Finished,
    Plan,
    adopt_plan,
    check_folder,
    is_complete,
)
from glci_dist.data.processes import in_processes
from glci_dist.data.scan import file_sha256, scan_tar
from glci_dist.data.sources import (
    Member,
    Reader,
    Source,
    is_compressed_tar,
    keys_of,
    open_source,
    unpack_tar,
)
from glci_dist.data.tars import add_photo
from glci_dist.data.verify import check_shards
from glci_dist.errors import Interrupted, UserError

REJECTS_NAME = "rejects.jsonl"


@dataclass(frozen=True)
class Built:
    """What stands in the folder when a build is complete."""

    index: Index
    rejected: int
    """Photos that could not be decoded; each has a line in rejects.jsonl."""
    skipped: int
    """Files of the source that are no photos."""
    already: bool
    """The build was complete before, and nothing was done."""


@dataclass(frozen=True)
class _Task:
    folder: Path
    source: Path
    kind: str
    name: str
    photos: tuple[tuple[str, Member], ...]
    """Key and place of each photo of the shard, in its order."""
    options: BuildOptions
    standing: Finished | None
    """What a build that was stopped says of this shard."""


def build_shards(source: Path, folder: Path, options: BuildOptions, *, processes: int) -> Built:
    """Write the photos of ``source`` into shards in ``folder``, or complete a build that was stopped there.

    UserError when an option is out of range, ``source`` cannot be read or has no photo that can be
    decoded, or ``folder`` holds something else; Interrupted on Ctrl-C.
    """
    options.check()
    check_folder(folder)
    try:
        if not is_compressed_tar(source):
            return _build(source, source, folder, options, processes)
        folder.mkdir(parents=True, exist_ok=True)
        # Reading in shuffled order needs offsets, which a compressed tar does not have.
        unpacked = folder / "source.tar.tmp"
        try:
            unpack_tar(source, unpacked)
            return _build(source, unpacked, folder, options, processes)
        finally:
            unpacked.unlink(missing_ok=True)
    except OSError as fault:
        raise UserError(
            f"{fault.filename or folder}: {fault.strerror or fault}; put that right, then run the same command again"
        ) from fault


def _build(source: Path, readable: Path, folder: Path, options: BuildOptions, processes: int) -> Built:
    photos = open_source(readable, include=options.include)
    folder.mkdir(parents=True, exist_ok=True)
    adopt_plan(folder, Plan(str(source.resolve()), photos.fingerprint(), len(photos.photos), options))
    journal = BuildJournal(folder)
    try:
        already = is_complete(folder)
        if not already:
            _complete(photos, folder, options, journal, processes)
        index = load_index(str(folder))
        check_shards(index)
        journal.remove()
    finally:
        journal.close()
    return Built(index, _count_lines(folder / REJECTS_NAME), photos.skipped, already)


def _complete(photos: Source, folder: Path, options: BuildOptions, journal: BuildJournal, processes: int) -> None:
    for left_behind in folder.glob("shard-*.tmp"):
        left_behind.unlink()
    finished: list[Finished] = []
    tasks = _tasks(photos, folder, options, journal.finished)
    with tqdm(total=len(photos.photos), unit="photo", disable=None) as bar:
        try:
            for outcome in in_processes(_make_shard, tasks, processes=processes):
                journal.add(outcome)
                finished.append(outcome)
                bar.update((outcome.shard.samples if outcome.shard else 0) + len(outcome.rejects))
        except KeyboardInterrupt as fault:
            raise Interrupted(
                f"stopped with {len(finished)} shards done; run the same command again to complete {folder}"
            ) from fault
        finally:
            _reader.cache_clear()
    finished.sort(key=lambda outcome: outcome.name)
    rejects = sorted(reject for outcome in finished for reject in outcome.rejects)
    if rejects:
        lines = [json.dumps({"name": name, "reason": reason}) + "\n" for name, reason in rejects]
        write_whole(folder / REJECTS_NAME, "".join(lines).encode())
    shards = [outcome.shard for outcome in finished if outcome.shard]
    if not shards:
        raise UserError(
            f"none of the {len(photos.photos)} photos can be decoded; "
            f"see {folder / REJECTS_NAME} for the reason of each, then remove {folder}"
        )
    save_index(folder, shards)


def _tasks(photos: Source, folder: Path, options: BuildOptions, standing: dict[str, Finished]) -> Iterator[_Task]:
    keys = keys_of(photo.name for photo in photos.photos)
    total = len(photos.photos)
    order = np.arange(total)
    if options.shuffle:
        order = generator(seed=options.seed, purpose="shards build", number=0).permutation(total)
    for number, start in enumerate(range(0, total, options.samples)):
        chosen = [photos.photos[place] for place in order[start : start + options.samples]]
        name = f"shard-{number:06d}.tar"
        keyed = tuple((keys[photo.name], photo) for photo in chosen)
        yield _Task(folder, photos.path, photos.kind, name, keyed, options, standing.get(name))


def _make_shard(task: _Task) -> Finished:
    if task.standing and (task.standing.shard is None or _stands(task.folder, task.standing.shard)):
        return task.standing
    # The process id keeps a process that its killed parent left behind for a moment out of the way.
    aside = task.folder / f"{task.name}.{os.getpid()}.tmp"
    try:
        rejects = _write_tar(aside, task)
        if len(rejects) == len(task.photos):
            return Finished(task.name, None, rejects)
        scan = scan_tar(aside, name=task.name)
        write_whole(task.folder / table_name(task.name), scan.table)
        os.replace(aside, task.folder / task.name)
    except OSError as fault:
        raise UserError(
            f"{task.folder / task.name} cannot be written: {fault.strerror}; put that right, "
            "then run the same command again (finished shards are kept)"
        ) from fault
    finally:
        aside.unlink(missing_ok=True)
    return Finished(task.name, scan.shard, rejects)


def _write_tar(path: Path, task: _Task) -> tuple[tuple[str, str], ...]:
    """Write the task's photos; name and reason of each that could not be decoded."""
    reader = _reader(task.source, task.kind)
    rejects: list[tuple[str, str]] = []
    with open(path, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for key, member in task.photos:
                try:
                    photo = _read(reader, member)
                    jpeg = to_shard_jpeg(photo, size=task.options.size, quality=task.options.quality)
                except BadPhoto as fault:
                    rejects.append((member.name, str(fault)))
                    continue
                add_photo(archive, key, jpeg)
        file.flush()
        os.fsync(file.fileno())
    return tuple(rejects)


def _read(reader: Reader, member: Member) -> bytes:
    try:
        return reader.read(member)
    # zipfile: RuntimeError for a password, NotImplementedError for an unknown compression.
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise BadPhoto(f"it cannot be read: {reason}") from fault


@functools.lru_cache(maxsize=1)
def _reader(source: Path, kind: str) -> Reader:
    # Opening a zip reads its whole directory: once for each process, not for each shard.
    return Reader(source, kind)


def _stands(folder: Path, shard: Shard) -> bool:
    """Whether a finished shard and its sample table are still what they were."""
    files = ((shard.name, shard.sha256), (table_name(shard.name), shard.table_sha256))
    return all((folder / name).exists() and file_sha256(folder / name) == sha for name, sha in files)


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(1 for _ in file)
