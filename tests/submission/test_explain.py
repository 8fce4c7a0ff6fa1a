"""What is reckoned before a submission is what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from glci_dist import compose
from glci_dist.cluster.world import joined
from glci_dist.slurm.explain import checkpoint_bytes, memory
from glci_dist.training.setup import build_gan_step
from glci_dist.training.train import train
from tests.small_run import newest_in, small
from tests.worlds import run_world


def train_to_the_end(overrides: list[str]) -> None:
    train(compose.load(overrides))


@pytest.mark.distributed
def test_the_checkpoint_has_the_reckoned_size(faces_shards: str, tmp_path: Path) -> None:
    overrides = small(faces_shards, tmp_path, steps=(1, 0, 1))
    run_world(1, train_to_the_end, overrides)
    saved = newest_in(tmp_path / "run" / "checkpoints")
    assert saved is not None
    # Headers and statistics of batch norm stand in it besides.
    assert checkpoint_bytes(compose.load(overrides)) == pytest.approx(saved.bytes, rel=0.1)


def count_weights(overrides: list[str]) -> int:
    config = compose.load(overrides)
    with joined(config.engine) as world:
        contest = build_gan_step(config, world)
        networks = (contest.completion.network, contest.discriminators.network)
        return sum(parameter.numel() * parameter.element_size() for each in networks for parameter in each.parameters())


@pytest.mark.distributed
def test_the_weights_take_the_reckoned_memory_and_zero_shares_the_optimisers_state(
    faces_shards: str, tmp_path: Path
) -> None:
    overrides = small(faces_shards, tmp_path, steps=(1, 0, 1))
    (weights,) = run_world(1, count_weights, overrides)
    alone, four = memory(compose.load(overrides), 1), memory(compose.load([*overrides, "engine.zero_stage=1"]), 4)
    assert alone.weights == alone.gradients == weights
    assert (alone.optimizers, four.optimizers) == (2 * weights, weights // 2)
    # One slot a rank instead of four.
    assert four.activations == alone.activations // 4


@pytest.mark.parametrize("recipe", ["paper", "modern"])
@pytest.mark.parametrize("experiment", ["demo", "faces64", "faces128", "faces160", "places256"])
def test_the_memory_of_every_experiment_is_reckoned(experiment: str, recipe: str) -> None:
    # Whatever share the groups of batch norm have of a batch.
    config = compose.load([f"experiment={experiment}", f"recipe={recipe}", "data.shards=nowhere"])
    assert memory(config, 4).activations > 0
