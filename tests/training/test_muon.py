"""Muon's updates, held against their formula in double precision and against torch's Adam."""

from __future__ import annotations

import copy
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from glci_dist import compose
from glci_dist.cluster.world import joined
from glci_dist.config import EngineConfig
from glci_dist.models.build import build_completion
from glci_dist.training import muon
from glci_dist.training.muon import Muon, is_matrix, orthogonal
from tests.worlds import run_world

BETAS, EPS = (0.9, 0.99), 1e-6


def by_singular_values(matrix: Tensor) -> Tensor:
    """The iteration as a polynomial of each singular value."""
    u, values, v = torch.linalg.svd(matrix.double() / matrix.double().norm(), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return u * values @ v


@pytest.mark.parametrize("shape", [(32, 200), (200, 32), (64, 64), (128, 1152), (16, 27)])
@pytest.mark.parametrize("spread", [0.0, 4.0], ids=["even", "ill-conditioned"])
def test_the_iteration_is_a_polynomial_of_the_singular_values(shape: tuple[int, int], spread: float) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) * torch.logspace(0, -spread, shape[1])
    found = orthogonal(matrix, least=1e-6)
    torch.testing.assert_close(found.double(), by_singular_values(matrix), atol=1e-3, rtol=0)
    # A random square has values near 0, which stay small.
    if not spread and shape[0] != shape[1]:
        assert 0.65 < torch.linalg.svdvals(found).min() <= torch.linalg.svdvals(found).max() < 1.21


def test_scale_does_not_matter_and_what_has_few_directions_keeps_to_them() -> None:
    torch.manual_seed(0)
    thin = torch.randn(40, 3) @ torch.randn(3, 60)
    found = orthogonal(thin, least=1e-6)
    values = torch.linalg.svdvals(found)
    assert values[2] > 0.6
    assert values[3] < 1e-2
    torch.testing.assert_close(orthogonal(1e-4 * thin, least=1e-6), found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["glcic", "context_encoder"])
def test_no_bias_and_no_channelwise_layer_counts_as_a_matrix(kind: str) -> None:
    words = ["data.shards=x", "phases.coarse.steps=0", f"model.completion.kind={kind}"]
    found = {name: is_matrix(each) for name, each in build_completion(compose.load(words)).named_parameters()}
    assert not any(of_muon for name, of_muon in found.items() if name.endswith("bias"))
    convolutions = [name for name, of_muon in found.items() if of_muon]
    if kind == "glcic":
        # All but the last, to three colours.
        assert len(convolutions) == 16
    else:
        # Three halvings, the convolution after the channelwise layer, two enlargements, the last one to three colours.
        assert len(convolutions) == 7


@pytest.mark.parametrize("size", [1e-12, 1e-20, 1e-30, 1e-42, 0.0])
def test_what_is_next_to_nothing_stays_so(size: float) -> None:
    torch.manual_seed(0)
    # As training has it, so that the squares of 1e-20 are 0.
    assert torch.set_flush_denormal(True)
    try:
        found = orthogonal(size * torch.randn(20, 30), least=1e-6)
    finally:
        torch.set_flush_denormal(False)
    assert found.abs().max() <= 485 * 5 * size / 1e-6


def test_products_are_exact_whatever_the_process_has_chosen() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(64, 300)
    expected = orthogonal(matrix, least=1e-6)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(orthogonal(matrix, least=1e-6), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    # Of the weights the first and second are matrices for Muon; the third has 3 rows.
    layers = (nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 20, 3), nn.ReLU(), nn.Conv2d(20, 3, 1))
    return nn.Sequential(*layers)


def gradients(parameters: list[nn.Parameter], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(parameter.shape, generator=generator) for parameter in parameters]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("channels_last", [False, True])
def test_matrices_move_by_the_formula_and_the_rest_as_with_adam(weight_decay: float, channels_last: bool) -> None:
    trained, reference = network(), network()
    if channels_last:
        for layer in trained:
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters, expected = list(trained.parameters()), list(reference.parameters())
    optimizer = Muon(parameters, lr=1.0, betas=BETAS, eps=EPS, weight_decay=weight_decay)
    adam = torch.optim.Adam(expected, betas=BETAS, eps=EPS, weight_decay=weight_decay, fused=True)
    averages = [torch.zeros(each.shape, dtype=torch.float64) for each in expected]
    matrices = [each.dim() == 4 and each.shape[0] > 3 for each in expected]
    assert [is_matrix(each) for each in parameters] == matrices
    assert sum(matrices) == 2
    for step, lr in enumerate([1e-2, 3e-3, 1e-2]):
        before = [each.detach().clone() for each in expected]
        for mine, other, gradient in zip(parameters, expected, gradients(expected, step), strict=True):
            mine.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.param_groups[0]["lr"] = adam.param_groups[0]["lr"] = lr
        optimizer.step()
        adam.step()
        for index, (weights, gradient) in enumerate(zip(before, gradients(expected, step), strict=True)):
            if not matrices[index]:
                continue
            averages[index] = 0.9 * averages[index] + 0.1 * gradient.double()
            ahead = (0.1 * gradient.double() + 0.9 * averages[index]).flatten(1)
            update = 0.2 * max(ahead.shape) ** 0.5 * by_singular_values(ahead)
            with torch.no_grad():
                expected[index].copy_((1 - lr * weight_decay) * weights - lr * update.view(weights.shape))
        for mine, other, is_muons in zip(parameters, expected, matrices, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6 if is_muons else 0, rtol=1e-4 if is_muons else 0)


def test_updates_are_as_large_as_adams() -> None:
    for shape in ((32, 8, 5, 5), (128, 128, 3, 3), (256, 2048), (64, 16)):
        torch.manual_seed(0)
        weights = nn.Parameter(torch.zeros(shape))
        weights.grad = torch.randn(shape)
        Muon([weights], lr=1e-3, betas=BETAS, eps=EPS, weight_decay=0.0).step()
        assert 0.1e-3 < weights.detach().square().mean().sqrt() < 0.25e-3, shape


def test_parameters_without_a_gradient_stay_and_have_no_state() -> None:
    trained = network()
    parameters = list(trained.parameters())
    before = copy.deepcopy(trained.state_dict())
    optimizer = Muon(parameters, lr=1e-2, betas=BETAS, eps=EPS, weight_decay=0.1)
    optimizer.step()
    assert all(torch.equal(trained.state_dict()[name], tensor) for name, tensor in before.items())
    assert not optimizer.state
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 0.0)


def moved(factor: float) -> list[Tensor]:
    """The network's parameters after two steps; rank r finds updates that are ``factor`` to the r times as large."""
    with joined(EngineConfig(precision="fp32")) as world:
        parameters = list(network().parameters())
        optimizer = Muon(parameters, lr=1e-2, betas=BETAS, eps=EPS, weight_decay=0.0, rank=world.rank, ranks=world.size)

        def made_here(matrix: Tensor, *, least: float) -> Tensor:
            return factor**world.rank * orthogonal(matrix, least=least)

        with patch.object(muon, "orthogonal", made_here):
            for step in range(2):
                for parameter, gradient in zip(parameters, gradients(parameters, step), strict=True):
                    parameter.grad = gradient
                optimizer.step()
        return [parameter.detach() for parameter in parameters]


@pytest.mark.distributed
def test_ranks_share_the_work_and_stay_equal_though_one_should_round_otherwise() -> None:
    (alone,) = run_world(1, moved, 1.0)
    # More ranks than the two matrices.
    for ranks in (2, 4):
        first, *others = run_world(ranks, moved, 1.0)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(alone, first, strict=True))
        skewed, *rest = run_world(ranks, moved, 1.001)
        for one, found in [*((first, other) for other in others), *((skewed, other) for other in rest)]:
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, found, strict=True))
        # One of the matrices is the second rank's.
        different = [not torch.equal(mine, theirs) for mine, theirs in zip(alone, skewed, strict=True)]
        assert sum(different) == 1
