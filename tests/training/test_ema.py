"""The moving average follows weights and running statistics, and nothing else touches either network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from glci_dist.models.batch_norm import BatchNorm2d
from glci_dist.training.ema import MovingAverage


def network(value: float) -> nn.Sequential:
    """A convolution and a norm, every number of which is ``value``."""
    made = nn.Sequential(nn.Conv2d(2, 3, 1), BatchNorm2d(3))
    return fill(made, value)


def fill(made: nn.Sequential, value: float) -> nn.Sequential:
    with torch.no_grad():
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(value)
    return made


def values(made: nn.Module) -> set[float]:
    return {x for t in made.state_dict().values() if t.is_floating_point() for x in t.flatten().tolist()}


def test_it_is_the_formula_for_every_weight_and_running_statistic() -> None:
    trained = network(1.0)
    average = MovingAverage(trained, 0.9)
    expected = 1.0
    for step in range(200):
        average.update(fill(trained, float(step % 7)), step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step % 7)

    (value,) = values(average.network)
    assert value == pytest.approx(expected, rel=1e-5)


def test_the_decay_rises_with_the_step_so_that_first_weights_are_soon_forgotten() -> None:
    def kept(step: int) -> float:
        average = MovingAverage(network(1.0), 0.999)
        average.update(network(0.0), step)
        return values(average.network).pop()

    assert kept(0) == pytest.approx(0.1)
    assert kept(90) == pytest.approx(0.91)
    assert kept(10**6) == pytest.approx(0.999)


def test_it_has_its_own_tensors_which_no_training_touches() -> None:
    trained = network(1.0)
    average = MovingAverage(trained, 0.9)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())

    fill(trained, 5.0)
    assert values(average.network) == {1.0}
    average.update(trained, 0)
    assert values(trained) == {5.0}
    assert trained.training
    assert all(parameter.requires_grad for parameter in trained.parameters())
