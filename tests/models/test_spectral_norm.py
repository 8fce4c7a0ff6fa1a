"""Spectral normalisation: a largest singular value of 1, and no trace of a pass that trains nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from glci_dist.config import DiscriminatorConfig
from glci_dist.models.discriminators import ContextDiscriminators
from glci_dist.models.spectral_norm import SpectralConv2d, SpectralLinear, advance


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(2)


@pytest.mark.parametrize("make", [lambda: SpectralConv2d(3, 8, 5, 2, 2), lambda: SpectralLinear(30, 12)])
def test_the_largest_singular_value_becomes_1(make: type) -> None:
    layer = make()
    for _ in range(300):
        layer.advance()
    values = torch.linalg.svdvals(layer.normalized().flatten(1))
    assert float(values[0].detach()) == pytest.approx(1.0, abs=1e-4)
    assert float(torch.linalg.svdvals(layer.weight.flatten(1))[0].detach()) != pytest.approx(1.0, abs=0.05)


def test_values_and_gradients_agree_with_torch() -> None:
    ours, theirs = SpectralLinear(7, 5), nn.Linear(7, 5)
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if name != "left"})
    wrapped: nn.Module = nn.utils.parametrizations.spectral_norm(theirs, n_power_iterations=500)
    for _ in range(500):
        ours.advance()
    inputs = torch.randn(4, 7)
    ours(inputs).square().sum().backward()
    wrapped(inputs).square().sum().backward()
    assert torch.allclose(ours(inputs), wrapped(inputs), atol=1e-4)
    assert ours.weight.grad is not None
    gradient = dict(wrapped.named_parameters())["parametrizations.weight.original"].grad
    assert gradient is not None
    assert torch.allclose(ours.weight.grad, gradient, rtol=1e-3, atol=1e-4)


def test_a_pass_leaves_no_trace_and_advancing_does() -> None:
    judge = ContextDiscriminators(size=32, patch=16, config=DiscriminatorConfig(width=0.1, normalization="spectral"))
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    judge((torch.rand(2, 3, 32, 32), torch.rand(2, 3, 16, 16)))
    assert all(value.equal(before[name]) for name, value in judge.state_dict().items())
    for parameter in judge.parameters():
        parameter.data.add_(0.1)
    advance(judge)
    moved = {name for name, value in judge.state_dict().items() if not value.equal(before[name]) and "left" in name}
    # The last layer has one output, whose direction cannot move.
    assert moved == {name for name in before if name.endswith("left") and name != "decide.left"}


def test_every_layer_of_the_discriminators_is_normalised_and_none_keeps_batch_norm() -> None:
    judge = ContextDiscriminators(
        size=32, patch=16, config=DiscriminatorConfig(width=0.1, normalization="spectral", slope=0.2)
    )
    kinds = [type(module) for module in judge.modules() if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))]
    assert set(kinds) == {SpectralConv2d, SpectralLinear}
    assert nn.ReLU not in [type(module) for module in judge.modules()]
