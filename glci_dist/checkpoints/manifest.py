"""The manifest of a checkpoint: every file with its size and checksum, the step, and the JSON state.

A checkpoint is *complete* if its manifest is valid and its files have their sizes, *intact* if they also have their
checksums.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

_FORMATS = "glci-checkpoint-"
FORMAT = f"{_FORMATS}4"
_READ = (FORMAT, f"{_FORMATS}3")
"""The older format has the optimisers' scalars in one entry (see ``registry``)."""
MANIFEST_FILE = "manifest.json"
NETWORKS_FILE = "networks.safetensors"
_STEP = re.compile(r"step-(\d{8,})")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST = "xxh3_128"
_CHUNK = 8 * 2**20
_ONE_BIT_OFF = {f"{form[:-1]}{chr(ord(form[-1]) ^ (1 << bit))}" for form in _READ for bit in range(7)}


class Damaged(Exception):
    """A checkpoint that is not as it was written; the message says how it differs."""


class TemporarilyUnreadable(Exception):
    """A checkpoint that cannot be read at the moment, though its files may be intact; the message says why."""


_DAMAGE = (errno.EIO, errno.EISDIR, errno.ENOTDIR, errno.ENOENT, errno.ELOOP)
"""Errors of a damaged, replaced or missing file; any other comes from the state of the machine or network."""


@dataclass(frozen=True)
class File:
    """One file of a checkpoint."""

    bytes: int
    xxh3_128: str
    """32 hex digits."""
    ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The elements of each vector that it holds: start and stop."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of ``manifest.json``."""

    format: str = FORMAT
    step: int
    """The next step to run."""
    phase: str
    """Of the last step that was run."""
    ends_phase: bool
    parent: int | None
    """Step of the previous checkpoint: the last one committed, or the one resumed from; None: there was none."""
    attempt: int
    time: float
    """Seconds since 1970."""
    world_size: int
    facts: dict[str, Any]
    """JSON state of the stateful parts, and of the run."""
    vectors: dict[str, int]
    """Elements of each vector, over all ranks."""
    files: dict[str, File]

    def encode(self) -> bytes:
        """The file's content, with its own checksum in the second to last line."""
        text = json.dumps(asdict(self), indent=1)
        return (
            text.removesuffix("\n}") + f',\n "{_DIGEST}": "{xxhash.xxh3_128(text.encode()).hexdigest()}"\n}}\n'
        ).encode()


@dataclass(frozen=True)
class Checkpoint:
    """One saved state in its folder."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(file.bytes for file in self.manifest.files.values())


def folder_name(step: int) -> str:
    """``step-00001200``."""
    return f"step-{step:08d}"


def folders(root: Path) -> list[tuple[int, Path]]:
    """Step and path of each folder in ``root`` with a checkpoint's name, newest first."""
    if not root.is_dir():
        return []
    found = ((_STEP.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir())
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)


def read(path: Path) -> Checkpoint:
    """The checkpoint in folder ``path``, by its manifest alone; raises ``Damaged`` or ``TemporarilyUnreadable``."""
    try:
        content = (path / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise Damaged(f"{MANIFEST_FILE} {_what(error, path / MANIFEST_FILE)}") from error
    try:
        record = json.loads(content)
        form = record.pop("format", None) if isinstance(record, dict) else None
        if form not in _READ and _is_of_another_version(str(form), content):
            # Written by another version: it must not be moved aside as damaged.
            raise TemporarilyUnreadable(
                f"{path / MANIFEST_FILE} is of the format {form}, and this version reads {' and '.join(_READ)}: go on "
                "with the version that wrote it"
            )
        if form not in _READ:
            raise Damaged(f"{MANIFEST_FILE} is of another format than {FORMAT}")
        record.pop(_DIGEST, None)
        files = {name: File(**_entry(entry)) for name, entry in record.pop("files").items()}
        manifest = Manifest(**record, files=files, format=form)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise Damaged(f"{MANIFEST_FILE} is malformed") from error
    # Byte for byte: checks its checksum, and that it contains nothing else.
    if manifest.encode() != content:
        raise Damaged(f"{MANIFEST_FILE} does not have its own checksum")
    if folder_name(manifest.step) != path.name:
        raise Damaged(f"{MANIFEST_FILE} is of step {manifest.step}")
    strange = next((name for name in files if not _PLAIN.fullmatch(name)), None)
    if NETWORKS_FILE not in files:
        raise Damaged(f"{MANIFEST_FILE} names no {NETWORKS_FILE}")
    if strange is not None:
        raise Damaged(f"{MANIFEST_FILE} names the file {strange!r}, which lies elsewhere")
    return Checkpoint(path, manifest)


def _is_of_another_version(form: str, content: bytes) -> bool:
    """Whether a manifest is of another version's format, not of this format with a flipped bit in its name."""
    if re.fullmatch(rf"{_FORMATS}\d+", form) is None:
        return False
    if form not in _ONE_BIT_OFF:
        return True
    text, _, digest = content.decode().rpartition(f',\n "{_DIGEST}": "')
    return digest.startswith(xxhash.xxh3_128(f"{text}\n}}".encode()).hexdigest())


def check_files(checkpoint: Checkpoint, names: Sequence[str] | None = None, *, contents: bool = True) -> list[str]:
    """A line for each damaged file among ``names`` (default all); without ``contents`` only sizes are compared.

    Raises ``TemporarilyUnreadable``.
    """
    problems = []
    for name in checkpoint.manifest.files if names is None else names:
        problem = _problem(checkpoint.path / name, checkpoint.manifest.files[name], contents)
        if problem:
            problems.append(f"{name} {problem}")
    return problems


def newest_complete(root: Path) -> tuple[Checkpoint | None, list[tuple[Path, str]]]:
    """The newest complete checkpoint in ``root``, and what is wrong with newer ones.

    A run resumes from it, unless its checksums show that it is not intact.
    """
    broken: list[tuple[Path, str]] = []
    for _, path in folders(root):
        try:
            checkpoint = read(path)
            problems = check_files(checkpoint, contents=False)
        except (Damaged, TemporarilyUnreadable) as error:
            problems = [str(error)]
        if not problems:
            return checkpoint, broken
        broken.append((path, "; ".join(problems)))
    return None, broken


def resume_step(root: Path) -> int:
    """The step that a run with the checkpoints in ``root`` would resume from; 0 if none is complete."""
    checkpoint, _ = newest_complete(root)
    return checkpoint.step if checkpoint is not None else 0


def _problem(path: Path, file: File, contents: bool) -> str | None:
    try:
        found = path.stat().st_size
        if found != file.bytes:
            return f"has {found} bytes instead of {file.bytes}"
        if contents and checksum(path) != file.xxh3_128:
            return "does not have its checksum"
    except OSError as error:
        return _what(error, path)
    return None


def checksum(path: Path) -> str:
    """The XXH3-128 of a file, 32 hex digits; raises ``OSError``."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _what(error: OSError, path: Path) -> str:
    """The damage that an error shows; raises ``TemporarilyUnreadable`` if it shows none."""
    if error.errno not in _DAMAGE:
        raise TemporarilyUnreadable(f"{path} cannot be read: {error.strerror}") from error
    return "is missing" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    ranges = {name: (int(start), int(stop)) for name, (start, stop) in entry["ranges"].items()}
    return {**entry, "ranges": ranges}
