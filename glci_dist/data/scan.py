"""`glci shards index`, and scanning a tar: its sample table, count and checksum."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from glci_dist.data.filetype import kind_of
from glci_dist.data.foreign import is_table, refuse_foreign_index, refuse_foreign_rejects, refuse_foreign_table
from glci_dist.data.index import Index, Shard, encode_table, load_index, save_index, table_name, write_whole
from glci_dist.data.names import COMPRESSED_TARS, READ_IN_WORDS, counted, most_frequent, printable, shown
from glci_dist.data.processes import in_processes
from glci_dist.data.webdataset_samples import Samples, tar_samples
from glci_dist.errors import UserError

INDEX_REJECTS_NAME = "index-rejects.jsonl"


@dataclass(frozen=True)
class IndexResult:
    """The result of indexing a folder."""

    index: Index
    rejects: int
    """Images that are not hidden and no sample's photo; each has a line in index-rejects.jsonl."""
    messages: tuple[str, ...]
    """Messages, a line for each kind of images or files left out."""


@dataclass(frozen=True)
class _Outcome:
    name: str
    shard: Shard | None = None
    """None for a tar without a photo, or with a fault."""
    samples: Samples = field(default_factory=Samples)
    """Without the rows, which would fill the memory."""
    fault: str = ""
    is_void: bool = False
    """0 bytes: not an empty tar, which has an end record, but a lost one."""


def index_folder(folder: Path, *, processes: int, image: str | None = None) -> IndexResult:
    """Write sample tables and index.json for the tars in ``folder``; the corpus has them in the order of names.

    ``image`` is the extension of each sample's photo (None: the first extension of a photo). A tar without a photo is
    left out and reported. UserError if there is no tar, none has a photo, one is truncated or damaged, or another
    program's file would be overwritten.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder that holds the tars")
    image = _check_image(image)
    try:
        tars, messages = _find_tars(folder)
        refuse_foreign_index(folder)
        refuse_foreign_rejects(folder / INDEX_REJECTS_NAME)
        for tar in tars:
            refuse_foreign_table(tar.with_name(table_name(tar.name)))
        scanned = in_processes(functools.partial(_index_shard, image), tars, processes=processes)
        outcomes = list(tqdm(scanned, total=len(tars), unit="shard", disable=None))
        return _write(folder, sorted(outcomes, key=lambda outcome: outcome.name), image, messages)
    except OSError as fault:
        raise UserError(
            f"{fault.filename or folder}: {fault.strerror or fault}; put that right, then run it again"
        ) from fault


def scan_tar(path: Path, *, name: str, image: str | None = None) -> tuple[Shard, bytes, Samples]:
    """The shard ``name``, which the tar at ``path`` is or will be, its sample table's content, and its samples.

    UserError as ``tar_samples``.
    """
    samples = tar_samples(path, image=image)
    table = encode_table(samples.rows)
    shard = Shard(name, len(samples.rows), path.stat().st_size, file_sha256(path), hashlib.sha256(table).hexdigest())
    return shard, table, samples


def file_sha256(path: Path) -> str:
    """Hex digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_image(image: str | None) -> str | None:
    if image is None:
        return None
    extension = image.removeprefix("*").removeprefix(".").lower()
    if not extension or "/" in extension:
        raise UserError(f"--image {image!r} is no extension; give what stands after the key's dot, as jpg or face.jpg")
    return extension


def _find_tars(folder: Path) -> tuple[list[Path], list[str]]:
    """The tars to be indexed, and messages on others. UserError if there is none."""
    if (folder / "build.json").exists() and not (folder / "index.json").exists():
        raise UserError(f"{folder} holds an unfinished build; run the same `glci shards build` again")
    named = sorted(path for path in folder.iterdir() if path.name.lower().endswith(".tar"))
    tars = [path for path in named if path.suffix == ".tar" and path.name[0] != "." and not path.is_dir()]
    below = sorted({path.parent.name for path in folder.glob("*/*.tar") if path.parent.name[0] != "."})
    others = {
        "folders with tars of their own left out; index each by itself": below if tars else [],
        "hidden files left out": [path.name for path in named if path.name[0] == "."],
        "folders left out": [path.name for path in named if path.name[0] != "." and path.is_dir()],
        "left out, as shards end in .tar; rename them": [
            path.name for path in named if path.suffix != ".tar" and path.name[0] != "." and not path.is_dir()
        ],
        "compressed tars left out; unpack them (gunzip and the like), then index again": sorted(
            path.name for path in folder.iterdir() if path.name.lower().endswith(COMPRESSED_TARS)
        ),
    }
    messages = [f"{what}: {shown(names)}" for what, names in others.items() if names]
    if not tars:
        hint = f"; its folder {below[0]!r} does: index that" if below else ""
        raise UserError(
            f"no shards: {folder} holds no .tar file (compressed tars: unpack them first){hint}"
            + "".join(f"; {line}" for line in messages)
        )
    return tars, messages


def _write(folder: Path, outcomes: list[_Outcome], image: str | None, messages: list[str]) -> IndexResult:
    damaged = [outcome.fault for outcome in outcomes if outcome.fault]
    if damaged:
        many = f"{len(damaged)} of {len(outcomes)} tars cannot be read, so nothing is indexed: "
        raise UserError((many if len(outcomes) > 1 else "") + "; ".join(damaged))
    shards = [outcome.shard for outcome in outcomes if outcome.shard]
    messages += _messages(outcomes, image)
    if not shards:
        found = _extensions(outcomes)
        raise UserError(
            f"no tar of {folder} has a photo: {printable(outcomes[0].name)} has no {image or READ_IN_WORDS}"
            + (f"; the images' extensions are {found}; choose one with --image" if found else "")
        )
    rejects = [
        {"name": f"{outcome.name}/{reject.name}", "reason": reject.reason}
        for outcome in outcomes
        for reject in outcome.samples.rejects
    ]
    path = folder / INDEX_REJECTS_NAME
    if rejects:
        write_whole(path, "".join(json.dumps(reject) + "\n" for reject in rejects).encode())
    else:
        path.unlink(missing_ok=True)
    save_index(folder, shards)
    _remove_stale_tables(folder, shards)
    return IndexResult(load_index(str(folder)), len(rejects), tuple(messages))


def _remove_stale_tables(folder: Path, shards: list[Shard]) -> None:
    """Remove sample tables of tars that the new index, already written, does not name."""
    named = {table_name(shard.name) for shard in shards}
    for path in sorted(folder.glob(table_name("*.tar"))):
        if path.name not in named and path.is_file() and is_table(path):
            path.unlink(missing_ok=True)


def _messages(outcomes: list[_Outcome], image: str | None) -> list[str]:
    """Messages on what was left out, a line for each kind, with examples."""
    messages: list[str] = []
    empty = [outcome.name for outcome in outcomes if not outcome.shard]
    void = [outcome.name for outcome in outcomes if outcome.is_void]
    if empty:
        messages.append(
            f"{len(empty):,} of {len(outcomes):,} tars without a photo left out: {shown(empty)}"
            + (f"; get those of 0 bytes again, or move them out of the folder: {shown(void)}" if void else "")
        )
    without = _gather(outcomes, lambda samples: samples.without)
    if without:
        messages.append(f"{counted(len(without), 'sample')} without a {READ_IN_WORDS} left out: {shown(without)}")
    hidden = _gather(outcomes, lambda samples: samples.hidden)
    if hidden:
        messages.append(
            f"{counted(len(hidden), 'image')} hidden, or in hidden or machine-made folders, left out: {shown(hidden)}"
        )
    kinds: dict[str, list[str]] = {}
    for outcome in outcomes:
        for reject in outcome.samples.rejects:
            kinds.setdefault(reject.kind, []).append(f"{printable(outcome.name)}/{reject.name!r}: {reject.reason}")
    for kind, names in kinds.items():
        messages.append(f"{counted(len(names), 'image')} left out, as {kind}, e.g. {names[0]}")
    if any(reject.by_choice for outcome in outcomes for reject in outcome.samples.rejects):
        messages.append(
            f"the images' extensions are {_extensions(outcomes)}: --image EXT chooses which is a sample's photo; "
            "`glci shards build TAR DEST` takes every image of a tar by itself"
        )
    return messages


def _gather(outcomes: list[_Outcome], names: Callable[[Samples], list[str]]) -> list[str]:
    return [f"{outcome.name}/{name}" for outcome in outcomes for name in names(outcome.samples)]


def _extensions(outcomes: list[_Outcome]) -> str:
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.samples.extensions)
    return most_frequent(counts, "{0} ({1:,})")


def _index_shard(image: str | None, path: Path) -> _Outcome:
    if not path.is_file():
        what = "is no file" if path.exists() else "is a link to nowhere"
        return _Outcome(path.name, fault=f"{path} {what}; move it out of the folder")
    if not path.stat().st_size:
        return _Outcome(path.name, is_void=True)
    try:
        _refuse_compressed(path)
        shard, table, samples = scan_tar(path, name=path.name, image=image)
    except UserError as fault:
        return _Outcome(path.name, fault=str(fault))
    rest = replace(samples, rows=[])
    if not shard.samples:
        return _Outcome(path.name, samples=rest)
    try:
        write_whole(path.with_name(table_name(path.name)), table)
    except OSError as fault:
        raise UserError(f"{path.name}'s sample table cannot be written: {fault.strerror}") from fault
    return _Outcome(path.name, shard, rest)


def _refuse_compressed(path: Path) -> None:
    try:
        kind = kind_of(path)
    except UserError:  # reading it as a tar gives a better message
        return
    if kind != "tar":
        raise UserError(f"{path} is no plain tar but a {kind} file by its content; unpack it")
