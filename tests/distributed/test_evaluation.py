"""An evaluation by any number of ranks gives the figures of one."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from glci_dist.cluster import collectives
from glci_dist.cluster.collectives import ProgressMark
from glci_dist.cluster.world import joined
from glci_dist.config import EngineConfig, HolesConfig
from glci_dist.data.demo_faces import render_face
from glci_dist.errors import UserError
from glci_dist.evaluation.baselines import mean_colour, telea
from glci_dist.evaluation.evaluate import evaluate
from glci_dist.evaluation.evaluate_runs import complete_with
from glci_dist.evaluation.feature_metrics import EfficientNet
from glci_dist.evaluation.protocol import frozen_protocol
from glci_dist.models.completion import CompletionNetwork
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


def figures(size: int) -> dict[str, Any] | None:
    """The JSON of an evaluation of 37 faces by an untrained network and Telea; on rank 0."""
    photos = [(f"face/{number}", render_face(3, number, 48)) for number in range(37)]
    torch.manual_seed(0)
    network = CompletionNetwork(width=0.125).eval()
    protocol = frozen_protocol("box", 48, HolesConfig(min_side=12, max_side=24, patch=30))
    with joined(EngineConfig(device="cpu", threads=1)) as world:
        assert world.size == size
        methods = {"Telea": telea, "network": complete_with(network, world.device)}
        result = evaluate(
            methods, photos, protocol, feature_metrics=[EfficientNet(world.device)], batch=8, replicates=20, world=world
        )
    return json.loads(result.to_json()) if result is not None else None


def flat(node: Any, path: str = "") -> dict[str, float]:
    if isinstance(node, dict):
        return {key: value for name, each in node.items() for key, value in flat(each, f"{path}/{name}").items()}
    return {path: node} if isinstance(node, float) else {}


def test_figures_on_1_2_and_4_ranks_are_equal() -> None:
    (alone,) = run_world(1, figures, 1)
    assert alone is not None
    known = flat(alone)
    for size in (2, 4):
        first, *others = run_world(size, figures, size, timeout=200)
        assert others == [None] * (size - 1)
        found = flat(first)
        assert found.keys() == known.keys()
        furthest = max(abs(found[key] - known[key]) / max(abs(known[key]), 1e-9) for key in known)
        print(f"{len(known)} figures on {size} ranks: within {furthest:.1e} of those on one")
        assert furthest == 0


def broken_on_rank_1() -> str:
    photos = [(f"noise/{number}", np.full((32, 32, 3), number, np.uint8)) for number in range(4)]
    protocol = frozen_protocol("box", 32, HolesConfig(min_side=8, max_side=16, patch=20))
    with joined(EngineConfig(device="cpu", threads=1)) as world:
        grey = mean_colour((0.5, 0.5, 0.5))

        def broken(shown: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
            return grey(shown, masks) + (float("nan") if world.rank == 1 else 0.0)

        try:
            evaluate({"network": broken}, photos, protocol, batch=1, world=world)
        except UserError as error:
            return str(error)
    return ""


def test_what_goes_wrong_on_one_rank_ends_all_with_its_line() -> None:
    said = run_world(2, broken_on_rank_1)
    assert said[0] == said[1]
    assert "rank 1 on " in said[0]
    assert "network completes noise/1 with values that are not finite" in said[0]


def merging() -> tuple[ProgressMark | None, bool]:
    """The progress that rank 0 shows while it merges, and whether this rank has the result."""
    photos = [(f"noise/{number}", np.full((32, 32, 3), number, np.uint8)) for number in range(4)]
    protocol = frozen_protocol("box", 32, HolesConfig(min_side=8, max_side=16, patch=20))
    shown: list[ProgressMark] = []

    class Watched(type(protocol)):  # type: ignore[misc]
        def digest(self, count: int) -> str:
            shown.append(collectives.progress())
            return super().digest(count)

    watched = Watched(**{each.name: getattr(protocol, each.name) for each in fields(protocol)})
    with joined(EngineConfig(device="cpu", threads=1)) as world:
        result = evaluate({"grey": mean_colour((0.5, 0.5, 0.5))}, photos, watched, batch=1, world=world)
    return (shown[0] if shown else None), result is not None


def test_the_other_ranks_wait_without_bound_while_rank_0_merges() -> None:
    (first, has_result), (other, is_alone) = run_world(2, merging)
    assert has_result
    assert (other, is_alone) == (None, False)
    assert first is not None
    assert (first.is_unbounded, first.has_timeout) == (True, False)
