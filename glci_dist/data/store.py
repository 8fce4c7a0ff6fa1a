"""Reads samples by their offset: one ``pread`` each, from shards that are kept open."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import FileIO
from typing import Any, TypeVar

import numpy as np

from glci_dist.config import CacheConfig
from glci_dist.data.cache import ShardCache
from glci_dist.data.index import Index, Shard, parse_table, table_name
from glci_dist.data.location import check_location, is_remote, join, local_path
from glci_dist.data.pixels import DecodeError
from glci_dist.errors import UserError
from glci_dist.urls import without_secrets

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _OpenShard:
    file: FileIO
    descriptor: int
    offsets: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray


class ShardStore:
    """Reads samples of ``index``, from a local folder or through the node's cache of remote shards.

    At most ``open_shards`` shards, the most recently used ones, are open at a time; a remote one stays in the cache
    while it is open. Picklable: a copy opens its own files. Not thread-safe.
    """

    def __init__(self, index: Index, cache: CacheConfig, *, open_shards: int = 32) -> None:
        check_location(index.root)
        self._index = index
        self._open_shards = open_shards
        self._remote = is_remote(index.root)
        self._cache = ShardCache(cache)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._verified: set[int] = set()

    def check(self) -> None:
        """Raise UserError if the cache could not serve all the shards; fetches nothing. No check for local shards."""
        if self._remote:
            files = [(shard.name, shard.sha256) for shard in self._index.shards]
            files += [(table_name(shard.name), shard.table_sha256) for shard in self._index.shards]
            self._cache.check([(join(self._index.root, name), sha256) for name, sha256 in files])

    def sample(self, shard: int, number: int) -> tuple[str, bytes]:
        """The key and the encoded photo of sample ``number`` (from 0) of shard ``shard`` (from 0).

        UserError if the shard or its table is missing, cannot be read, or does not match the index.
        """
        opened = self._open.get(shard)
        if opened is None:
            opened = self._open_shard(shard)
        else:
            self._open.move_to_end(shard)
        length = opened.lengths.item(number)
        try:
            photo = os.pread(opened.descriptor, length, opened.offsets.item(number))
        except OSError as fault:
            raise UserError(self._location(shard) + f" cannot be read: {fault.strerror}") from fault
        if len(photo) != length:
            if self._refetch_if_damaged(shard):
                return self.sample(shard, number)
            raise self._does_not_match(shard, f"it ends within sample {number}")
        return opened.keys.item(number).decode(), photo

    def decoded(self, shard: int, number: int, decode: Callable[[bytes], _T], *, encoded: bytes) -> _T:
        """``decode`` of a sample's bytes; if it fails and the cached shard is damaged, of newly fetched bytes.

        Raises as ``sample``, and ``DecodeError`` if the photo itself is damaged.
        """
        try:
            return decode(encoded)
        except DecodeError:
            if not self._refetch_if_damaged(shard):
                raise
        return decode(self.sample(shard, number)[1])

    def _refetch_if_damaged(self, shard: int) -> bool:
        """Verify the cached copy of ``shard`` (once while it is open), and fetch a damaged one again.

        Returns whether it was damaged, so that its samples must be read again; False for local shards. UserError if the
        server's copy is damaged too.
        """
        opened = self._open.get(shard)
        if not self._remote or opened is None or shard in self._verified:
            return False
        record = self._index.shards[shard]
        location = join(self._index.root, record.name)
        if self._cache.is_intact(opened.file, location, bytes=record.bytes, sha256=record.sha256):
            self._verified.add(shard)
            return False
        self._open.pop(shard).file.close()
        self._open_shard(shard)
        self._verified.add(shard)
        return True

    def close(self) -> None:
        """Close all shards; the next ``sample`` opens what it needs again."""
        for opened in self._open.values():
            opened.file.close()
        self._open.clear()
        self._verified.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ShardStore, open_shards=self._open_shards), (self._index, self._cache.config)

    def _open_shard(self, number: int) -> _OpenShard:
        while len(self._open) >= self._open_shards:
            oldest, closed = self._open.popitem(last=False)
            closed.file.close()
            self._verified.discard(oldest)
        shard = self._index.shards[number]
        table = self._table(number, shard)
        file = self._file(shard.name, bytes=shard.bytes, sha256=shard.sha256)
        found = os.fstat(file.fileno()).st_size
        if found != shard.bytes:
            file.close()
            raise self._does_not_match(number, f"it has {found} bytes, the index says {shard.bytes}")
        opened = _OpenShard(file, file.fileno(), table["offset"], table["length"], table["key"])
        self._open[number] = opened
        return opened

    def _table(self, number: int, shard: Shard) -> np.ndarray:
        """The shard's sample table, checked against the index: offset, length and key of each sample."""
        with self._file(table_name(shard.name), bytes=None, sha256=shard.table_sha256) as file:
            content = file.readall()
        if hashlib.sha256(content).hexdigest() != shard.table_sha256:
            raise self._does_not_match(number, "the checksum of its table of samples differs")
        return parse_table(content, shard)

    def _file(self, name: str, *, bytes: int | None, sha256: str) -> FileIO:
        location = join(self._index.root, name)
        if self._remote:
            return self._cache.fetch(location, bytes=bytes, sha256=sha256)
        try:
            return FileIO(local_path(location))
        except OSError as fault:
            raise UserError(
                f"{location} cannot be read: {fault.strerror}; run glci shards verify to see what is missing"
            ) from fault

    def _location(self, shard: int) -> str:
        return without_secrets(join(self._index.root, self._index.shards[shard].name))

    def _does_not_match(self, shard: int, how: str) -> UserError:
        return UserError(
            f"{self._location(shard)} does not match its index: {how}; run glci shards verify, "
            "or make the index anew (glci shards index)"
        )
