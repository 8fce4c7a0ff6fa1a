"""The stateful parts of a run, saved and loaded by one protocol. What is registered here is in the checkpoint.

Its content is tensors, shards of vectors, and JSON: it knows no networks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from glci_dist.checkpoints.manifest import Checkpoint
from glci_dist.checkpoints.reading import CheckpointVectors, load_tensors
from glci_dist.errors import Fault, UserError


@runtime_checkable
class Stateful(Protocol):
    """A part of a run with a state, with the methods of torch's modules.

    One that keeps some of its state across a rollback also has ``rewind_state_dict``, called then in place of
    ``load_state_dict``, so that the run does not repeat what led to it.
    """

    def state_dict(self) -> Mapping[str, Any]:
        """Its state before the next step. Called on every rank, so it may use collectives.

        Each value is a ``Tensor`` that is equal on every rank, this rank's ``VectorShard`` of a vector, or JSON (rank
        0's is saved).
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> Any:
        """Load a ``state_dict`` of any world size, with a ``VectorHandle`` in place of each ``VectorShard``."""
        ...


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


@dataclass(frozen=True)
class VectorHandle:
    """A vector of a checkpoint."""

    vectors: CheckpointVectors
    name: str

    def read(self, start: int, stop: int) -> Tensor:
        """The elements ``start`` to ``stop``, fp32 ``(stop - start,)``."""
        return self.vectors.read(self.name, start, stop)


class Registry:
    """The stateful parts of a run, by their names in a checkpoint."""

    def __init__(self, parts: Mapping[str, Stateful], *, optional: Collection[str] = ()) -> None:
        """``optional``: parts that a checkpoint may lack; they then keep their state."""
        self.parts, self._optional = dict(parts), frozenset(optional)

    def state(self, **facts: Any) -> CheckpointState:
        """This rank's share of a checkpoint's content; every rank calls it. ``facts``: further JSON.

        Raises ``Fault`` for a part whose state is neither tensors nor JSON.
        """
        whole: dict[str, Tensor] = {}
        vectors: dict[str, VectorShard] = {}
        for name, part in self.parts.items():
            rest: dict[str, Any] = {}
            for key, value in part.state_dict().items():
                if isinstance(value, Tensor):
                    whole[f"{name}/{key}"] = value
                elif isinstance(value, VectorShard):
                    vectors[f"{name}/{key}"] = value
                else:
                    rest[key] = value
            if rest:
                try:
                    json.dumps(rest)
                except (TypeError, ValueError) as error:
                    raise Fault(f"{name}: its state cannot be saved: {error}", one_rank=True) from error
                facts[name] = rest
        return CheckpointState(whole, vectors, facts)

    def load(self, checkpoint: Checkpoint, *, verified: bool, rewind: bool = False) -> None:
        """Load each part's state from a checkpoint; ``rewind``: for a rollback. ``verified``: as in ``load_tensors``.

        Raises ``Damaged``, ``TemporarilyUnreadable``, ``OSError``, ``UserError`` where a part is missing or a network
        does not fit.
        """
        tensors = load_tensors(checkpoint, verified=verified)
        vectors = CheckpointVectors(checkpoint, verified=verified)
        facts = _facts(checkpoint)
        for name, part in self.parts.items():
            prefix = f"{name}/"
            state: dict[str, Any] = {
                # One copy at a time.
                **{key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)},
                **{
                    key.removeprefix(prefix): VectorHandle(vectors, key)
                    for key in vectors.names()
                    if key.startswith(prefix)
                },
                **facts.get(name, {}),
            }
            if state or name not in self._optional:
                _load(checkpoint, name, part, state, rewind=rewind)


def _load(checkpoint: Checkpoint, name: str, part: Stateful, state: Mapping[str, Any], *, rewind: bool) -> None:
    if isinstance(part, nn.Module):
        try:
            part.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"{checkpoint.path} does not fit the configured {name} network: resume with the configuration it has"
            ) from error
    elif not state:
        raise UserError(f"{checkpoint.path} has nothing of {name}: go on with the version that wrote it")
    else:
        load = getattr(part, "rewind_state_dict", part.load_state_dict) if rewind else part.load_state_dict
        load(state)


def _facts(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The JSON state of each part. The older format has the optimisers' in one entry."""
    facts = checkpoint.manifest.facts
    return {**facts, **{f"{side}.optimizer": numbers for side, numbers in facts.get("optimizers", {}).items()}}
