"""What a checkpoint holds, as the trainer hands it over and takes it back; it knows nothing of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """The elements ``start`` to ``stop`` of a vector of ``total``, which another rank has the rest of."""

    start: int
    total: int
    pieces: Sequence[Tensor]
    """One after the other they are those elements; each fp32, of any shape."""

    @property
    def stop(self) -> int:
        return self.start + sum(piece.numel() for piece in self.pieces)


@dataclass(frozen=True)
class State:
    """One rank's view of a run's state, before some step."""

    whole: Mapping[str, Tensor]
    """Tensors by name that are equal on every rank: ``completion/weight``. Rank 0 writes them."""
    parts: Mapping[str, Part]
    """This rank's share of each vector: ``completion.optimizer/exp_avg``."""
    facts: Mapping[str, Any]
    """What goes into the manifest as it is (JSON), equal on every rank."""


class Vectors(Protocol):
    """The vectors of a checkpoint, whoever wrote which part of them."""

    def names(self) -> Sequence[str]: ...

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The elements ``start`` to ``stop`` of a vector, fp32 ``(stop - start,)``."""
        ...
