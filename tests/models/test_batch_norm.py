"""Batch norm over the global batch is torch's over the whole batch, in every world."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from glci_dist.cluster.world import World, joined
from glci_dist.config import EngineConfig
from glci_dist.models.batch_norm import (
    BatchNorm2d,
    commit_running_statistics,
    frozen,
    rows_per_slot,
    set_group,
)
from glci_dist.models.completion import CompletionNetwork
from tests.worlds import run_world

PHOTOS, CHANNELS, SIDE = 8, 5, 6
WORLDS = (1, 2, 4)
GROUPS = (2, 4, 8)
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


def torchs_by_group(dtype: torch.dtype, group: int) -> Pass:
    """torch's batch norm over each group by itself, in double precision; the running statistics of one blend."""
    x, probe = inputs(dtype)
    passes = [
        twice(nn.BatchNorm2d(CHANNELS, momentum=1.0).double(), some.double(), of_some.double())
        for some, of_some in zip(x.split(group), probe.split(group), strict=True)
    ]
    # With momentum 1 they are those of the second pass, over ``x`` + 1: the first pass has means that are 1 less.
    mean = torch.stack([each.running_mean for each in passes]).mean(0) - 0.5
    variance = torch.stack([each.running_var for each in passes]).mean(0)
    return Pass(
        torch.cat([each.output for each in passes]),
        torch.cat([each.grad_input for each in passes]),
        sum((each.grad_weight for each in passes), torch.zeros(())),
        sum((each.grad_bias for each in passes), torch.zeros(())),
        0.1 * mean,
        0.9 + 0.1 * variance,
    )


def pass_in_groups() -> dict[int, dict[torch.dtype, Pass]]:
    """What a rank computes of the passes with groups of 2, 4 and 8 slots."""
    with joined(EngineConfig(device="cpu", threads=1)) as world:
        share = _share(world)
        passes: dict[int, dict[torch.dtype, Pass]] = {}
        for group in GROUPS:
            passes[group] = {}
            for dtype in (torch.float32, torch.bfloat16):
                x, probe = inputs(dtype)
                norm = BatchNorm2d(CHANNELS)
                set_group(norm, group)
                passes[group][dtype] = twice(norm, x[share], probe[share])
        return passes


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


def assert_equal(ranks: list[Pass], expected: Pass, bound: float) -> None:
    """The ranks' shares of the passes are the whole."""
    assert distance(torch.cat([rank.output for rank in ranks]), expected.output) < bound
    assert distance(torch.cat([rank.grad_input for rank in ranks]), expected.grad_input) < bound
    # A rank's own share: the engine adds up the ranks', as for every other weight.
    assert distance(sum((rank.grad_weight for rank in ranks), torch.zeros(())), expected.grad_weight) < bound
    assert distance(sum((rank.grad_bias for rank in ranks), torch.zeros(())), expected.grad_bias) < bound
    for rank in ranks:
        assert distance(rank.running_mean, expected.running_mean) < bound
        assert distance(rank.running_var, expected.running_var) < bound


@pytest.mark.distributed
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, BF16_BOUND)])
@pytest.mark.parametrize("size", WORLDS)
def test_it_equals_torchs_batch_norm_over_the_global_batch(
    worlds: dict[int, list], size: int, dtype: torch.dtype, bound: float
) -> None:
    ranks, expected = [passes[dtype] for passes, _, _ in worlds[size]], torchs(dtype)

    assert_equal(ranks, expected, bound)


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


@pytest.fixture(scope="module")
def worlds_in_groups() -> dict[int, list[dict[int, dict[torch.dtype, Pass]]]]:
    return {size: run_world(size, pass_in_groups) for size in WORLDS}


@pytest.mark.distributed
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, BF16_BOUND)])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("size", WORLDS)
def test_with_groups_it_equals_torchs_batch_norm_of_each_group(
    worlds_in_groups: dict[int, list], size: int, group: int, dtype: torch.dtype, bound: float
) -> None:
    ranks, expected = [passes[group][dtype] for passes in worlds_in_groups[size]], torchs_by_group(dtype, group)

    assert_equal(ranks, expected, bound)
    for rank in ranks:
        if dtype == torch.float32:
            alone = worlds_in_groups[1][0][group][dtype]
            assert rank.running_mean.equal(alone.running_mean)
            assert rank.running_var.equal(alone.running_var)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_micro_batches_of_whole_groups_are_as_good_as_one_pass(dtype: torch.dtype) -> None:
    x, _ = inputs(dtype)
    whole, parted = BatchNorm2d(CHANNELS), BatchNorm2d(CHANNELS)
    set_group(whole, 2)
    set_group(parted, 2)
    at_once = whole(x)
    parts = [parted(part) for part in x.split(4)]
    for norm in (whole, parted):
        commit_running_statistics(norm, accept=True)

    assert torch.cat(parts).equal(at_once)
    for name, tensor in whole.state_dict().items():
        assert tensor.equal(parted.state_dict()[name]), name


def test_inputs_of_one_slot_count_as_one_of_a_group() -> None:
    x, _ = inputs(torch.float32)
    of_four, of_two = BatchNorm2d(CHANNELS), BatchNorm2d(CHANNELS)
    set_group(of_four, 4)
    set_group(of_two, 2)

    with rows_per_slot(2):
        of_pairs = of_two(x)
    assert of_pairs.equal(of_four(x))


def test_rows_that_hold_no_whole_groups_are_refused() -> None:
    norm = BatchNorm2d(CHANNELS)
    set_group(norm, 3)
    with pytest.raises(RuntimeError, match="8 rows on each of 1 ranks hold no whole groups of 3"):
        norm(inputs(torch.float32)[0])
