"""`glci shards build`: photos to shards, with the same bytes for the same photos and options.

Each shard is a task of its own, written to a temporary file and renamed. A build that was stopped keeps its finished
shards: the same command completes it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from glci_dist.data.draws import generator
from glci_dist.data.filetype import Kind, kind_of, unpack_tar
from glci_dist.data.index import Index, Shard, load_index, save_index, table_name, write_whole
from glci_dist.data.members import Member
from glci_dist.data.names import counted, shown
from glci_dist.data.pixels import DecodeError
from glci_dist.data.plan import (
    REJECTS_NAME,
    UNPACKED_NAME,
    BuildInputs,
    BuildJournal,
    BuildOptions,
    FinishedShard,
    adopt_plan,
    check_folder,
    has_plan,
    is_complete,
    remove_leftovers,
)
from glci_dist.data.processes import in_processes
from glci_dist.data.scan import file_sha256, scan_tar
from glci_dist.data.shard_jpeg import check_head, has_several_pictures, to_shard_jpeg
from glci_dist.data.sources import Reader, Source, keys_of, open_source
from glci_dist.data.splits import other_splits, split_messages
from glci_dist.data.tars import add_photo
from glci_dist.data.verify import check_shards
from glci_dist.data.zips import ZIP_FAULTS
from glci_dist.errors import Fault, Interrupted, UserError, out_of_memory


@dataclass(frozen=True)
class BuildResult:
    """The result of a complete build."""

    index: Index
    photos: int
    """Photos of the source that match ``include``: built and rejected."""
    rejected: int
    """Photos that could not be read or decoded; each has a line in rejects.jsonl."""
    messages: tuple[str, ...]
    """Messages, a line for each kind of files left out."""
    already: bool
    """The build was complete before, and nothing was done."""


@dataclass(frozen=True)
class _Task:
    folder: Path
    source: Path
    kind: str
    name: str
    photos: tuple[tuple[str, Member], ...]
    """Key and member of each photo of the shard, in its order."""
    options: BuildOptions
    standing: FinishedShard | None
    """This shard's entry in the journal of a stopped build."""


def build_shards(source: Path, folder: Path, options: BuildOptions, *, processes: int) -> BuildResult:
    """Write the photos of ``source`` into shards in ``folder``, or complete a build that was stopped there.

    UserError if an option is out of range, ``source`` cannot be read or has no photo that can be decoded, or ``folder``
    holds other files; Interrupted on Ctrl-C.
    """
    options.check()
    try:
        kind = None if source.is_dir() else kind_of(source)
        check_folder(folder)
        # A plain source is listed before anything is written, so that a failure leaves nothing behind.
        photos = open_source(source, include=options.include) if kind in (None, "zip", "tar") else None
        with _locked(folder) as journal, contextlib.ExitStack() as at_end:
            if photos is None:
                assert kind is not None
                unpacked = folder / UNPACKED_NAME
                at_end.callback(unpacked.unlink, missing_ok=True)
                photos = _unpacked(source, kind, unpacked, options)
            return _build(source, photos, folder, options, journal, processes)
    except OSError as fault:
        raise UserError(
            f"{fault.filename or folder}: {fault.strerror or fault}; put that right, then run the same command again"
        ) from fault


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[BuildJournal]:
    """The build's journal, locked before ``folder`` is changed; if no plan was written, new folders are removed."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with BuildJournal(folder) as journal:
        try:
            yield journal
        finally:
            if is_complete(folder) or not has_plan(folder):
                journal.remove()
            if not has_plan(folder):
                with contextlib.suppress(OSError):  # another command may have put something there
                    for path in new:
                        path.rmdir()


def _unpacked(source: Path, kind: Kind, tar: Path, options: BuildOptions) -> Source:
    # Shuffled reading needs offsets, which a compressed tar does not have.
    unpack_tar(source, kind, tar)
    try:
        return open_source(tar, include=options.include)
    except UserError as fault:  # name the file that the user gave
        raise UserError(str(fault).replace(str(tar), str(source))) from fault


def _build(
    source: Path, photos: Source, folder: Path, options: BuildOptions, journal: BuildJournal, processes: int
) -> BuildResult:
    plan = BuildInputs(str(source.resolve()), photos.fingerprint(), len(photos.photos), options)
    adopt_plan(folder, plan)
    already = is_complete(folder)
    several = [] if already else _complete(photos, folder, options, journal, processes)
    index = load_index(str(folder))
    check_shards(index)
    have = "has" if len(several) == 1 else "have"
    told = f"{counted(len(several), 'photo')} {have} several pictures (an animation, pages), the first taken: "
    messages = (
        *([told + shown(several)] if several else []),
        *photos.left_out.lines(options.include, len(photos.photos)),
        *split_messages(photos, folder, options.include, other_splits(folder, plan.source)),
    )
    rejects = folder / REJECTS_NAME
    rejected = rejects.read_bytes().count(b"\n") if rejects.exists() else 0
    return BuildResult(index, len(photos.photos), rejected, messages, already)


def _complete(photos: Source, folder: Path, options: BuildOptions, journal: BuildJournal, processes: int) -> list[str]:
    """Build the missing shards; returns the names of photos with several pictures."""
    remove_leftovers(folder, but=photos.path)
    finished: list[FinishedShard] = []
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
    built = sum(shard.samples for shard in shards)
    if built + len(rejects) != len(photos.photos):
        raise Fault(
            f"{len(photos.photos)} photos became {built} and {len(rejects)} rejects: a mistake in glci; {folder}"
        )
    save_index(folder, shards)
    return sorted(name for outcome in finished for name in outcome.several)


def _tasks(photos: Source, folder: Path, options: BuildOptions, standing: dict[str, FinishedShard]) -> Iterator[_Task]:
    keys = keys_of(dict.fromkeys(photo.name for photo in photos.photos))
    total = len(photos.photos)
    order = np.arange(total)
    if options.shuffle:
        order = generator(seed=options.seed, purpose="shards build", number=0).permutation(total)
    for number, start in enumerate(range(0, total, options.samples)):
        chosen = [photos.photos[place] for place in order[start : start + options.samples]]
        name = f"shard-{number:06d}.tar"
        keyed = tuple((keys[photo.name], photo) for photo in chosen)
        yield _Task(folder, photos.path, photos.kind, name, keyed, options, standing.get(name))


def _make_shard(task: _Task) -> FinishedShard:
    if task.standing and (task.standing.shard is None or _stands(task.folder, task.standing.shard)):
        return task.standing
    # With the process id, as a process of a killed build may live on for a moment.
    aside = task.folder / f"{task.name}.{os.getpid()}.tmp"
    try:
        rejects, several = _write_tar(aside, task)
        if len(rejects) == len(task.photos):
            return FinishedShard(task.name, None, rejects)
        shard, table, _ = scan_tar(aside, name=task.name)
        write_whole(task.folder / table_name(task.name), table)
        os.replace(aside, task.folder / task.name)
    except OSError as fault:
        raise UserError(
            f"{task.folder / task.name} cannot be written: {fault.strerror}; put that right, "
            "then run the same command again (finished shards are kept)"
        ) from fault
    finally:
        aside.unlink(missing_ok=True)
    return FinishedShard(task.name, shard, rejects, several)


def _write_tar(path: Path, task: _Task) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Write the task's photos; returns their ``FinishedShard.rejects`` and ``several``."""
    reader = _reader(task.source, task.kind)
    rejects: list[tuple[str, str]] = []
    several: list[str] = []
    with open(path, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for key, member in task.photos:
                try:
                    photo = _read(reader, member)
                    jpeg = to_shard_jpeg(photo, size=task.options.size, quality=task.options.quality)
                    if has_several_pictures(photo):
                        several.append(member.name)
                except DecodeError as fault:
                    rejects.append((member.name, str(fault)))
                    continue
                except MemoryError as fault:
                    raise out_of_memory(fault, member.name) from fault
                add_photo(archive, key, jpeg)
        file.flush()
        os.fsync(file.fileno())
    return tuple(rejects), tuple(several)


def _read(reader: Reader, member: Member) -> bytes:
    try:
        return reader.read(member, check_head)
    except ZIP_FAULTS as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise DecodeError(f"it cannot be read: {reason}") from fault


@functools.lru_cache(maxsize=1)
def _reader(source: Path, kind: str) -> Reader:
    # Once per process, not per shard: opening a zip reads its whole directory.
    try:
        return Reader(source, kind)
    except OSError as fault:
        raise UserError(
            f"{source} cannot be read any more: {fault.strerror}; put it back, then run the same command again "
            "(finished shards are kept)"
        ) from fault


def _stands(folder: Path, shard: Shard) -> bool:
    """Whether a finished shard and its sample table are unchanged."""
    files = ((shard.name, shard.sha256), (table_name(shard.name), shard.table_sha256))
    return all((folder / name).exists() and file_sha256(folder / name) == sha for name, sha in files)
