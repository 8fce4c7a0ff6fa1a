"""A checkpoint's content in memory: tensors, shards of vectors, JSON. It knows no networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class VectorShard:
    """This rank's elements ``start`` to ``stop`` of a vector of ``total`` elements, sharded over ranks."""

    start: int
    total: int
    pieces: Sequence[Tensor]
    """fp32, of any shape; concatenated they are those elements."""

    @property
    def stop(self) -> int:
        return self.start + sum(piece.numel() for piece in self.pieces)


@dataclass(frozen=True)
class CheckpointState:
    """One rank's share of a run's state, before some step."""

    tensors: Mapping[str, Tensor]
    """Tensors by name that are equal on every rank: ``completion/weight``. Rank 0 writes them."""
    vectors: Mapping[str, VectorShard]
    """This rank's shard of each vector: ``completion.optimizer/exp_avg``."""
    extra_state: Mapping[str, Any]
    """JSON for the manifest, equal on every rank."""


class Vectors(Protocol):
    """Reads the vectors of a checkpoint, whichever ranks wrote them."""

    def names(self) -> Sequence[str]: ...

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The elements ``start`` to ``stop`` of a vector, fp32 ``(stop - start,)``."""
        ...
