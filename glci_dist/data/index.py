"""The index of a folder of shards, and the table of samples of each shard (format: shards/README.md).

The folder holds plain WebDataset tars, a **sample table** for each (``shard-000000.tar.samples.npy``), and
``index.json``. The index has the shards' names, counts, sizes and checksums and is read at start; a sample table is
read only with its shard, so a billion samples need only an index of counts.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glci_dist.config import CacheConfig
from glci_dist.data.location import check_location, is_remote, join, local_path, without_slash
from glci_dist.data.remote import read_remote
from glci_dist.data.unexpected_content import describe
from glci_dist.errors import UserError
from glci_dist.urls import without_secrets

FORMAT = "glci-shards-1"
INDEX_NAME = "index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of the folder and its sample table."""

    name: str
    """File name below the root."""
    samples: int
    """Number of photos, at least 1."""
    bytes: int
    """Size of the tar."""
    sha256: str
    """Of the tar, 64 hex digits."""
    table_sha256: str
    """Of the sample table's file, 64 hex digits."""


@dataclass(frozen=True)
class Index:
    """All shards below ``root``; their order is the corpus's order of samples."""

    root: str
    """Folder or url, without a trailing slash."""
    shards: tuple[Shard, ...]

    @functools.cached_property
    def counts(self) -> NDArray[np.int64]:
        """Samples of each shard, (len(shards),)."""
        return np.fromiter((shard.samples for shard in self.shards), np.int64, len(self.shards))

    @property
    def total(self) -> int:
        """Samples of the corpus."""
        return int(self.counts.sum())

    @property
    def digest(self) -> str:
        """SHA-256 of the shards' contents and order, independent of where they lie."""
        content = hashlib.sha256()
        for shard in self.shards:
            content.update(f"{shard.samples} {shard.sha256}\n".encode())
        return content.hexdigest()


def load_index(root: str, cache: CacheConfig | None = None) -> Index:
    """The index of a folder or url (file, http, https, s3); the shards themselves are not read.

    ``cache`` has retries, backoff and timeout for a url. UserError if the url is refused, or the index is missing,
    malformed, empty, or another kind of file, such as a login page.
    """
    check_location(root)
    place = without_slash(os.path.expanduser(root))
    if folder := _folder_of_index(place):
        raise UserError(f"{without_secrets(place)!r} is an index: give its folder, {without_secrets(folder)!r}")
    content = _read_index(place, cache)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as fault:
        _refuse_other_kind(place, content)
        raise _malformed(place, f"it is no JSON ({fault})") from fault
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        _refuse_other_kind(place, content)
        raise _malformed(place, f"its format is not {FORMAT!r}")
    records = document.get("shards")
    if not isinstance(records, list):
        raise _malformed(place, "it has no list of shards")
    if not records:
        raise UserError(f"{_shown(place)} names no shards; build some with `glci shards build`")
    shards = tuple(_parse_shard(place, number, record) for number, record in enumerate(records))
    if len({shard.name for shard in shards}) != len(shards):
        raise _malformed(place, "it names a shard twice")
    index = Index(place, shards)
    if document.get("total") != index.total:
        raise _malformed(place, f"its total is {document.get('total')!r}, its shards' samples are {index.total}")
    return index


def save_index(folder: Path, shards: Iterable[Shard]) -> None:
    """Write ``folder``/index.json atomically; equal shards give equal bytes."""
    shards = list(shards)
    lines = ",\n".join(json.dumps(asdict(shard)) for shard in shards)
    total = sum(shard.samples for shard in shards)
    text = f'{{"format": "{FORMAT}", "total": {total}, "shards": [\n{lines}\n]}}\n'
    write_whole(folder / INDEX_NAME, text.encode())


def table_name(shard_name: str) -> str:
    """The file name of a shard's sample table."""
    return f"{shard_name}.samples.npy"


def table_dtype(key_bytes: int) -> np.dtype[np.void]:
    """One sample's row: byte offset and length of the encoded photo in the tar, and its WebDataset key.

    The key is in UTF-8, at most ``key_bytes`` long.
    """
    return np.dtype([("offset", "<u8"), ("length", "<u8"), ("key", f"S{max(key_bytes, 1)}")])


def encode_table(rows: Sequence[tuple[int, int, str]]) -> bytes:
    """The file content of a sample table, from (offset, length, key) of each sample."""
    encoded = [(offset, length, key.encode()) for offset, length, key in rows]
    table = np.array(encoded, dtype=table_dtype(max((len(key) for _, _, key in encoded), default=1)))
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    return buffer.getvalue()


def parse_table(content: bytes, shard: Shard) -> NDArray[np.void]:
    """A sample table's rows (samples,), checked against its shard's entry in the index.

    UserError if it is not a sample table, has another number of samples, or points outside of the tar.
    """
    name = table_name(shard.name)
    try:
        table = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as fault:
        raise _bad_table(name, f"is no sample table ({fault})") from fault
    # The key's width differs between tables.
    key = table.dtype.fields.get("key") if table.dtype.fields else None
    if key is None or table.ndim != 1 or table.dtype != table_dtype(key[0].itemsize):
        raise _bad_table(name, "is no sample table")
    if len(table) != shard.samples:
        raise _bad_table(name, f"has {len(table)} samples, the index says {shard.samples}")
    ends = table["offset"] + table["length"]
    if (ends > shard.bytes).any() or (ends < table["offset"]).any():
        raise _bad_table(name, f"points beyond the {shard.bytes} bytes of {shard.name}")
    return table


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file, which is fsynced and renamed."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _refuse_other_kind(root: str, content: bytes) -> None:
    """Raise UserError if the content is not an index at all, where making the index again would not help."""
    kind = describe(content)
    if kind and is_remote(root):
        raise UserError(
            f"the answer for {_shown(root)} is no index but {kind}; "
            "check the url, the credentials (~/.netrc) and the proxy (http_proxy)"
        )
    if kind:
        raise UserError(f"{_shown(root)} is malformed: it is {kind}, no index; copy or build the shards again")


def _shown(root: str) -> str:
    return without_secrets(join(root, INDEX_NAME))


def _folder_of_index(place: str) -> str | None:
    """The folder of an index that was given in its place; None: ``place`` is not an index."""
    path, mark, query = place.partition("?") if is_remote(place) else (place, "", "")
    folder, _, name = path.rpartition("/")
    if name != INDEX_NAME or not (is_remote(place) or os.path.isfile(local_path(place))):
        return None
    return (folder or ("/" if path.startswith("/") else ".")) + mark + query


def _read_index(root: str, cache: CacheConfig | None) -> bytes:
    if is_remote(root):
        return read_remote(join(root, INDEX_NAME), cache)
    folder = Path(local_path(root))
    try:
        return (folder / INDEX_NAME).read_bytes()
    except FileNotFoundError as fault:
        raise UserError(_missing_index(root, folder)) from fault
    except OSError as fault:
        raise UserError(f"{folder / INDEX_NAME} cannot be read: {fault.strerror}") from fault


def _missing_index(root: str, folder: Path) -> str:
    if not folder.is_dir():
        return f"no shards: {root} is no folder; build one with `glci shards build SOURCE {root}`"
    if (folder / "build.json").exists():
        return f"the shards in {root} are not finished; run the same `glci shards build` again to complete them"
    if any(folder.glob("*.tar")):
        return f"the shards in {root} have no index.json; make it with `glci shards index {root}`"
    return f"no shards: {root} holds no index.json and no tar; build some with `glci shards build`"


def _parse_shard(root: str, number: int, record: Any) -> Shard:
    try:
        shard = Shard(**record)
        whole = type(shard.samples) is int and type(shard.bytes) is int and shard.samples > 0 and shard.bytes > 0
        named = Path(shard.name).name == shard.name and shard.name not in ("", ".", "..")
        hashed = _SHA256.fullmatch(shard.sha256) and _SHA256.fullmatch(shard.table_sha256)
    except TypeError as fault:
        raise _malformed(root, f"shard {number} is not an entry of {FORMAT}") from fault
    if not (whole and named and hashed):
        raise _malformed(root, f"shard {number} ({shard.name!r}) is not an entry of {FORMAT}")
    return shard


def _malformed(root: str, reason: str) -> UserError:
    return UserError(f"{_shown(root)} is malformed: {reason}; remove it and make it anew with `glci shards index`")


def _bad_table(name: str, reason: str) -> UserError:
    return UserError(f"the index does not match its shard: {name} {reason}; run `glci shards verify`")
