"""Which samples were used for training: a count and a checksum that do not depend on which rank computed a slot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_MODULUS = 2**64


@dataclass(frozen=True)
class SampleDigest:
    """A multiset of (step, slot, sample key), stored as its size and the sum of its members' hashes.

    Two digests are equal only if the same samples were used at the same steps and slots (up to a chance of
    1 in 2**64). Digests of ranks and steps can be added in any order.
    """

    count: int = 0
    digest: int = 0

    def __add__(self, other: SampleDigest) -> SampleDigest:
        return SampleDigest(self.count + other.count, (self.digest + other.digest) % _MODULUS)

    def with_samples(self, step: int, slots: Sequence[int], keys: Iterable[str]) -> SampleDigest:
        """This digest plus the samples of one step."""
        samples = (f"{step}/{slot}/{key}".encode() for slot, key in zip(slots, keys, strict=True))
        hashes = (hashlib.blake2b(sample, digest_size=8).digest() for sample in samples)
        return self + SampleDigest(len(slots), sum(int.from_bytes(each, "little") for each in hashes))

    def to_json(self) -> dict[str, int | str]:
        """For a manifest."""
        return {"count": self.count, "digest": f"{self.digest:016x}"}

    @classmethod
    def from_json(cls, entry: dict[str, int | str]) -> SampleDigest:
        return cls(int(entry["count"]), int(str(entry["digest"]), 16))
