"""What is registered is what is saved, by one protocol for networks, vectors and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from glci_dist.checkpoints.manifest import MANIFEST_FILE, Checkpoint, Manifest, read
from glci_dist.checkpoints.registry import Registry, Stateful, VectorShard
from glci_dist.errors import Fault, UserError
from tests.checkpoints.saves import saver


class Counter:
    """A part whose state is JSON."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "names": ["a", "b"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert state["names"] == ["a", "b"]
        self.count = state["count"]


class Lasting(Counter):
    """A part that a rollback leaves as it is."""

    def rewind_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = max(self.count, state["count"])


class Average:
    """A part with a vector, of which another rank might have the rest, and a number."""

    def __init__(self, values: torch.Tensor, steps: int) -> None:
        self.values, self.steps = values, steps

    def state_dict(self) -> dict[str, Any]:
        return {"values": VectorShard(0, len(self.values), [self.values]), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values = torch.cat([state["values"].read(0, 2), state["values"].read(2, 6)])
        self.steps = state["steps"]


def saved(run: Path, parts: Mapping[str, Stateful]) -> Checkpoint:
    with saver(run) as made:
        made.save(Registry(parts).state(config="seed: 0"), step=4, phase="joint", ends_phase=False)
    return read(run / "checkpoints" / "step-00000004")


@pytest.mark.parametrize("verified", [True, False])
def test_every_registered_part_comes_back_as_it_was(tmp_path: Path, verified: bool) -> None:
    network, values = nn.Linear(3, 2), torch.arange(6.0)
    checkpoint = saved(tmp_path, {"network": network, "average": Average(values, 3), "counter": Counter(7)})
    assert checkpoint.manifest.facts["config"] == "seed: 0"
    fresh, average, counter = nn.Linear(3, 2), Average(torch.zeros(6), 0), Counter(0)
    Registry({"network": fresh, "average": average, "counter": counter}).load(checkpoint, verified=verified)
    assert torch.equal(fresh.weight, network.weight)
    assert torch.equal(fresh.bias, network.bias)
    assert torch.equal(average.values, values)
    assert (average.steps, counter.count) == (3, 7)


def test_a_state_that_is_no_json_ends_the_run_by_the_name_of_its_part() -> None:
    with pytest.raises(Fault, match=r"callbacks\.mine: its state cannot be saved: .*Path"):
        Registry({"callbacks.mine": Counter(Path("x"))}).state()  # type: ignore[arg-type]


def test_what_a_part_keeps_where_a_run_goes_back_is_its_own_matter(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, {"one": Counter(7), "other": Lasting(7)})
    one, other = Counter(9), Lasting(9)
    registry = Registry({"one": one, "other": other})
    registry.load(checkpoint, verified=True, rewind=True)
    assert (one.count, other.count) == (7, 9)
    registry.load(checkpoint, verified=True)
    assert (one.count, other.count) == (7, 7)


def test_a_network_that_does_not_fit_and_a_part_that_is_not_there_are_refused_but_for_optional_ones(
    tmp_path: Path,
) -> None:
    checkpoint = saved(tmp_path, {"network": nn.Linear(3, 2)})
    for parts in ({"network": nn.Linear(4, 2)}, {"another": nn.Linear(3, 2)}):
        with pytest.raises(UserError, match=f"does not fit the configured {next(iter(parts))} network"):
            Registry(parts).load(checkpoint, verified=True)
    counter = Counter(9)
    with pytest.raises(UserError, match="has nothing of counter: go on with the version that wrote it"):
        Registry({"counter": counter}).load(checkpoint, verified=True)
    Registry({"counter": counter}, optional=("counter",)).load(checkpoint, verified=True)
    assert counter.count == 9


class Exhausted(Counter):
    """A part for which there is no memory left."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_a_part_cannot_do_is_no_misfit(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, {"counter": Counter(7)})
    with pytest.raises(torch.OutOfMemoryError):
        Registry({"counter": Exhausted(0)}).load(checkpoint, verified=True)


def test_a_checkpoint_of_before_there_was_a_registry_is_taken_up(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, {"completion.optimizer": Average(torch.arange(6.0), 3)})
    facts = dict(checkpoint.manifest.facts)
    facts["optimizers"] = {"completion": facts.pop("completion.optimizer")}
    (checkpoint.path / MANIFEST_FILE).write_bytes(Manifest(**{**vars(checkpoint.manifest), "facts": facts}).encode())
    average = Average(torch.zeros(6), 0)
    Registry({"completion.optimizer": average}).load(read(checkpoint.path), verified=True)
    assert (average.steps, float(average.values.sum())) == (3, 15)
