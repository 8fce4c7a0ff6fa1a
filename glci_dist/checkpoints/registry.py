"""What a checkpoint holds: the state of each registered part of a run, saved and loaded by one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from glci_dist.checkpoints.manifest import Checkpoint
from glci_dist.checkpoints.reading import SavedVectors, load_tensors
from glci_dist.checkpoints.state import Part, State, Vectors
from glci_dist.errors import UserError


class Stateful(Protocol):
    """A part of a run with state, as torch's modules are."""

    def state_dict(self) -> Mapping[str, Any]:
        """Its state before the next step: each value a ``Tensor`` that is equal on every rank, this rank's ``Part``
        of a vector, or JSON that is equal on every rank.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> Any:
        """Take up what ``state_dict`` of any world gave: in the place of a ``Part`` the whole ``SavedVector``."""
        ...


@runtime_checkable
class Rewindable(Protocol):
    """A part that keeps some of its state where a run goes back to a checkpoint, and would go the same way again."""

    def rewind_state_dict(self, state: Mapping[str, Any], /) -> None:
        """As ``load_state_dict``, in the middle of a run."""
        ...


@dataclass(frozen=True)
class SavedVector:
    """A vector of a checkpoint, whoever wrote which part of it."""

    vectors: Vectors
    name: str

    def read(self, start: int, stop: int) -> Tensor:
        """The elements ``start`` to ``stop``, fp32 ``(stop - start,)``."""
        return self.vectors.read(self.name, start, stop)


class Registry:
    """The stateful parts of a run by their names in a checkpoint; what is registered is what is saved."""

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self.parts = dict(parts)

    def state(self, **facts: Any) -> State:
        """This rank's view of what a checkpoint holds; ``facts``: JSON that stands beside the parts'."""
        whole: dict[str, Tensor] = {}
        vectors: dict[str, Part] = {}
        for name, part in self.parts.items():
            rest: dict[str, Any] = {}
            for key, value in part.state_dict().items():
                if isinstance(value, Tensor):
                    whole[f"{name}/{key}"] = value
                elif isinstance(value, Part):
                    vectors[f"{name}/{key}"] = value
                else:
                    rest[key] = value
            if rest:
                facts[name] = rest
        return State(whole, vectors, facts)

    def load(self, checkpoint: Checkpoint, *, verified: bool, rewind: bool = False) -> None:
        """Give each part its state of a checkpoint; ``rewind``: in the middle of a run.

        ``verified``: this process has compared the checksums; if not it does so first. A part that the checkpoint does
        not know stays as it is. Raises ``Damaged``, ``OSError``, and ``UserError`` where a tensor does not fit.
        """
        tensors = load_tensors(checkpoint, verified=verified)
        vectors = SavedVectors(checkpoint, verified=verified)
        facts = _facts(checkpoint)
        for name, part in self.parts.items():
            prefix = f"{name}/"
            state: dict[str, Any] = {
                **{key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)},
                **{
                    key.removeprefix(prefix): SavedVector(vectors, key)
                    for key in vectors.names()
                    if key.startswith(prefix)
                },
                **facts.get(name, {}),
            }
            # Of a version that had no such part; a network is never left as it was.
            if not state and not isinstance(part, nn.Module):
                continue
            try:
                if rewind and isinstance(part, Rewindable):
                    part.rewind_state_dict(state)
                else:
                    part.load_state_dict(state)
            except RuntimeError as error:
                raise does_not_fit(checkpoint, name) from error


def does_not_fit(checkpoint: Checkpoint, name: str) -> UserError:
    """What to say of a checkpoint whose tensors are not those of the configured network ``name``."""
    return UserError(
        f"{checkpoint.path} does not fit the configured {name} network: resume with the configuration it has"
    )


def _facts(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The JSON of each part; optimisers' stood together in checkpoints of before there was a registry."""
    facts = checkpoint.manifest.facts
    return {**facts, **{f"{side}.optimizer": numbers for side, numbers in facts.get("optimizers", {}).items()}}
