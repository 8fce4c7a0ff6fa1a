"""Batch norm over the global batch is torch's over the whole batch, in every world."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from glci_dist.cluster.world import World, joined
from glci_dist.config import EngineConfig
from glci_dist.models.batch_norm import BatchNorm2d, commit_running_statistics, frozen
from glci_dist.models.completion import CompletionNetwork
from tests.worlds import run_world

PHOTOS, CHANNELS, SIDE = 8, 5, 6
WORLDS = (1, 2, 4)
BF16_BOUND = 2e-2
"""Of the largest value: a bf16 number is rounded by 2^-9 of itself, and these passes round a few times."""


@dataclass
class Pass:
    """Two training passes: one rank's share of them, or (by torch) the whole."""

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    @classmethod
    def made_of(cls, *tensors: Tensor | None) -> Pass:
        assert all(tensor is not None for tensor in tensors)
        return cls(*tensors)  # type: ignore[arg-type]


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The global batch, whose photos differ much in mean and spread, and what its output is weighed with."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.linspace(0.2, 3, PHOTOS).view(-1, 1, 1, 1)
    x = torch.randn(PHOTOS, CHANNELS, SIDE, SIDE, generator=generator) * spread + 4 * spread
    return x.to(dtype), torch.randn(x.shape, generator=generator).to(dtype)


def twice(norm: nn.BatchNorm2d, x: Tensor, probe: Tensor) -> Pass:
    """Pass ``x``, then ``x`` + 1, with scale and offset that are not 1 and 0."""
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, CHANNELS))
        norm.bias.copy_(torch.linspace(1, -2, CHANNELS))
    x = x.clone().requires_grad_()
    output = norm(x)
    norm(x.detach() + 1)
    (output * probe).sum().backward()
    commit_running_statistics(norm, accept=True)
    return Pass.made_of(output.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var)


def pass_shares() -> tuple[dict[torch.dtype, Pass], dict[str, Tensor], str]:
    """What a rank computes of the passes and of a network's gradient, and how its norm forgets."""
    with joined(EngineConfig(device="cpu", threads=1)) as world:
        share = _share(world)
        passes = {}
        for dtype in (torch.float32, torch.bfloat16):
            x, probe = inputs(dtype)
            passes[dtype] = twice(BatchNorm2d(CHANNELS), x[share], probe[share])
        return passes, _network_gradient(world), _what_it_forgets(x[share].float())


def _share(world: World) -> slice:
    """The photos of a rank."""
    count = PHOTOS // world.size
    return slice(world.rank * count, (world.rank + 1) * count)


def _network_gradient(world: World) -> dict[str, Tensor]:
    torch.manual_seed(5)
    network = CompletionNetwork(width=0.05)
    photos = torch.rand(PHOTOS, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    share = photos[_share(world)]
    masks = torch.zeros_like(share[:, :1])
    masks[..., 4:10, 6:12] = 1
    (network(share, masks) - share).square().sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def _what_it_forgets(x: Tensor) -> str:
    """Empty if passes that must leave no trace leave none."""
    norm = BatchNorm2d(CHANNELS)
    before = copy.deepcopy(norm.state_dict())
    norm(x)
    if any(not tensor.equal(before[name]) for name, tensor in norm.state_dict().items()):
        return "the forward pass changed the running statistics"
    commit_running_statistics(norm, accept=False)
    with frozen(norm):
        output = norm(x.clone().requires_grad_())
    if not output.requires_grad:
        return "no gradient flows through"
    output.sum().backward()
    if norm.weight.grad is not None or not norm.weight.requires_grad:
        return "looking through left a gradient or a frozen network"
    commit_running_statistics(norm, accept=True)
    if any(not tensor.equal(before[name]) for name, tensor in norm.state_dict().items()):
        return "a pass that was not accepted, or a look through, was remembered"
    norm(x)
    commit_running_statistics(norm, accept=True)
    return "nothing is ever remembered" if norm.num_batches_tracked != 1 else ""


@pytest.fixture(scope="module")
def worlds() -> dict[int, list[tuple[dict[torch.dtype, Pass], dict[str, Tensor], str]]]:
    return {size: run_world(size, pass_shares) for size in WORLDS}


def torchs(dtype: torch.dtype) -> Pass:
    """torch's batch norm over the global batch, in double precision."""
    x, probe = inputs(dtype)
    return twice(nn.BatchNorm2d(CHANNELS).double(), x.double(), probe.double())


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((one.double() - other).abs().max() / other.abs().max())


@pytest.mark.distributed
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, BF16_BOUND)])
@pytest.mark.parametrize("size", WORLDS)
def test_it_equals_torchs_batch_norm_over_the_global_batch(
    worlds: dict[int, list], size: int, dtype: torch.dtype, bound: float
) -> None:
    ranks, expected = [passes[dtype] for passes, _, _ in worlds[size]], torchs(dtype)

    assert distance(torch.cat([rank.output for rank in ranks]), expected.output) < bound
    assert distance(torch.cat([rank.grad_input for rank in ranks]), expected.grad_input) < bound
    # A rank's own share: the engine adds up the ranks', as for every other weight.
    assert distance(sum((rank.grad_weight for rank in ranks), torch.zeros(())), expected.grad_weight) < bound
    assert distance(sum((rank.grad_bias for rank in ranks), torch.zeros(())), expected.grad_bias) < bound
    for rank in ranks:
        assert distance(rank.running_mean, expected.running_mean) < bound
        assert distance(rank.running_var, expected.running_var) < bound


@pytest.mark.distributed
def test_running_statistics_are_bitwise_equal_on_all_ranks_and_in_fp32_in_every_world(worlds: dict[int, list]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for size in WORLDS:
            first = worlds[1 if dtype == torch.float32 else size][0][0][dtype]
            for passes, _, _ in worlds[size]:
                assert passes[dtype].running_mean.equal(first.running_mean), f"{dtype}, world of {size}"
                assert passes[dtype].running_var.equal(first.running_var), f"{dtype}, world of {size}"


@pytest.mark.distributed
@pytest.mark.parametrize("size", WORLDS)
def test_a_pass_that_is_not_accepted_or_only_a_look_through_leaves_no_trace(worlds: dict[int, list], size: int) -> None:
    assert [trace for _, _, trace in worlds[size]] == [""] * size


@pytest.mark.distributed
def test_a_networks_gradient_over_two_ranks_is_that_of_one(worlds: dict[int, list]) -> None:
    alone = worlds[1][0][1]
    for name, expected in alone.items():
        shared = worlds[2][0][1][name] + worlds[2][1][1][name]
        assert distance(shared, expected.double()) < 1e-4, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_uses_the_running_statistics(dtype: torch.dtype) -> None:
    norm, reference = BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)
    x, probe = inputs(torch.float32)
    twice(norm, x, probe)
    reference.load_state_dict(norm.state_dict())
    norm.eval()
    reference.eval()

    with torch.no_grad():
        assert norm(x.to(dtype)).equal(reference(x.to(dtype)))
        # A photo's output does not depend on its company.
        assert norm(x.to(dtype))[:1].equal(norm(x[:1].to(dtype)))
