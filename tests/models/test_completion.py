"""The completion networks: the paper's figures, the shapes they take, and that nothing leaks out of a hole."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from glci_dist import compose
from glci_dist.models.batch_norm import BatchNorm2d, commit_running_statistics
from glci_dist.models.build import build_completion, unused_settings
from glci_dist.models.completion import CompletionNetwork, colours_from_logits, fill_colour
from glci_dist.models.context_encoder import ChannelwiseFullyConnected, ContextEncoder


def photos_and_masks(size: int, count: int = 2) -> tuple[Tensor, Tensor]:
    """Random photos with a hole off the centre."""
    generator = torch.Generator().manual_seed(size)
    masks = torch.zeros(count, 1, size, size)
    masks[:, :, size // 4 : size // 2, size // 8 : size // 2] = 1
    return torch.rand(count, 3, size, size, generator=generator), masks


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def footprint(network: CompletionNetwork, size: int = 400) -> int:
    """Side in px of what one cell of 4 x 4 output pixels sees: the pixels whose gradient is not zero.

    All weights are made positive, so that no gradients cancel and no ReLU closes. A cell, because a
    pixel of an enlarged map sees one neighbour less on one side, which one its parity decides.
    """
    network.double().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    x = torch.ones(1, 4, size, size, dtype=torch.float64, requires_grad=True)
    middle = slice(size // 2 + 2, size // 2 + 6)
    (gradient,) = torch.autograd.grad(network.layers(x)[0, 0, middle, middle].sum(), x)
    seen = gradient[0, 0] != 0
    height, width = int(seen.any(1).sum()), int(seen.any(0).sum())
    assert height == width
    return width


def settle(network: nn.Module, photos: Tensor, masks: Tensor) -> None:
    """Set the running statistics to these photos': with fresh ones the photo dies away in evaluation mode."""
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(photos, masks)
    commit_running_statistics(network, accept=True)


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(1)


def test_the_full_network_has_the_papers_number_of_parameters() -> None:
    assert round(parameters(CompletionNetwork()) / 1e6, 2) == 6.07


@pytest.mark.parametrize(("size", "gmac"), [(128, 8.1), (160, 12.7), (256, 32.6)])
def test_the_full_network_has_the_papers_cost(size: int, gmac: float) -> None:
    network = CompletionNetwork().to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size, device="meta"), torch.zeros(1, 1, size, size, device="meta"))

    assert round(counter.get_total_flops() / 2e9, 1) == gmac


@pytest.mark.parametrize("enlarge", ["deconvolution", "resize"])
def test_the_receptive_field_is_307_px_and_99_without_dilation(enlarge: str) -> None:
    network = CompletionNetwork(width=0.01, enlarge=enlarge)
    assert footprint(network) == 307

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            module.dilation = module.padding = (1, 1)
    assert footprint(network) == 99


@pytest.mark.parametrize("enlarge", ["deconvolution", "resize"])
@pytest.mark.parametrize("size", [4, 36, 64])
def test_any_multiple_of_4_fits_and_the_output_lies_between_0_and_1(size: int, enlarge: str) -> None:
    network = CompletionNetwork(width=0.1, enlarge=enlarge)
    with torch.no_grad():
        list(network.parameters())[-2].mul_(100)  # the last layer's weight
        output = network(*photos_and_masks(size))

    assert output.shape == (2, 3, size, size)
    assert output.dtype == torch.float32
    assert 0 <= output.min() < output.max() <= 1


def test_the_output_is_fp32_under_bf16_autocast_too() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CompletionNetwork(width=0.1)(*photos_and_masks(16)).dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fill", ["mean", "pyramid"])
@pytest.mark.parametrize("kind", ["glcic", "context_encoder"])
def test_what_lies_in_the_hole_never_changes_the_output(kind: str, fill: str, training: bool) -> None:
    is_modern = fill == "pyramid"
    if kind == "glcic":
        blocks = "residual" if is_modern else "plain"
        network: nn.Module = CompletionNetwork(
            width=0.1, fill=fill, residual=is_modern, mirror=is_modern, skips=True, blocks=blocks
        )
    else:
        network = ContextEncoder(size=32, width=0.1, fill=fill, residual=is_modern, mirror=is_modern)
    photos, masks = photos_and_masks(32)
    settle(network, photos, masks)
    network.train(training)
    others = torch.where(masks > 0, 1 - photos, photos)

    with torch.no_grad():
        output = network(photos, masks)
        assert not others.equal(photos)
        assert network(others, masks).equal(output)
        # The test can fail: a change beside the hole is seen.
        assert not network(torch.where(masks > 0, photos, 1 - photos), masks).equal(output)


def test_no_gradient_reaches_the_photo_inside_the_hole() -> None:
    photos, masks = photos_and_masks(32)
    photos.requires_grad_()
    CompletionNetwork(width=0.1)(photos, masks).sum().backward()

    assert photos.grad is not None
    assert (photos.grad * masks == 0).all()
    assert (photos.grad * (1 - masks) != 0).any()


def test_the_hole_is_filled_with_the_mean_colour_which_travels_with_the_weights() -> None:
    network, copy = CompletionNetwork(width=0.1), CompletionNetwork(width=0.1)
    fill_colour(network).copy_(torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
    copy.load_state_dict(network.state_dict())

    photos, masks = photos_and_masks(8)
    filled = copy.fill(photos, masks)
    inside = masks.expand(-1, 3, -1, -1) > 0
    assert filled[:, :3][inside].equal(fill_colour(network).expand_as(photos)[inside])
    assert filled[:, :3][~inside].equal(photos[~inside])
    assert filled[:, 3:].equal(masks)


def test_the_width_factor_scales_every_hidden_channel_count() -> None:
    def channels(width: float) -> list[int]:
        norms = (m for m in CompletionNetwork(width=width).modules() if isinstance(m, BatchNorm2d))
        return [norm.num_features for norm in norms]

    assert channels(1) == [64, 128, 128, *9 * [256], 128, 128, 64, 32]
    assert channels(0.5) == [count // 2 for count in channels(1)]


@pytest.mark.parametrize(
    "network", [CompletionNetwork(width=0.1), CompletionNetwork(width=0.1, enlarge="resize"), ContextEncoder(size=64)]
)
def test_no_layer_has_a_bias_before_batch_norm(network: nn.Module) -> None:
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | BatchNorm2d)]
    before = [one for one, then in itertools.pairwise(layers) if isinstance(then, BatchNorm2d)]

    assert len(before) == sum(isinstance(layer, BatchNorm2d) for layer in layers)
    assert all(layer.bias is None for layer in before)
    assert layers[-1].bias is not None


@pytest.mark.parametrize("size", [64, 128, 160, 256])
def test_the_context_encoder_takes_the_sizes_of_all_experiments(size: int) -> None:
    with torch.no_grad():
        output = ContextEncoder(size=size, width=0.1)(*photos_and_masks(size))

    assert output.shape == (2, 3, size, size)
    assert 0 <= output.min() < output.max() <= 1


def test_the_channelwise_layer_mixes_places_but_no_channels() -> None:
    layer = ChannelwiseFullyConnected(channels=3, side=4)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, 1, 2, 2], x)

    assert (gradient[0, 1] != 0).all()
    gradient[0, 1] = 0
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        ([], []),
        (["model.completion.kind=context_encoder"], ["enlarge", "skips", "blocks", "dilations"]),
        (["model.completion.kind=context_encoder", "recipe=paper"], []),
        (
            [
                "recipe=paper",
                "model.completion.skips=true",
                "model.completion.custom={_target_: tests.extending.broken.Network}",
            ],
            ["width", "skips"],
        ),
    ],
)
def test_settings_that_the_chosen_network_does_not_use_are_named(words: list[str], unused: list[str]) -> None:
    config = compose.load(["data.shards=shards", "name=run", *words])
    assert unused_settings(config) == unused


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("blocks", ["plain", "residual"])
def test_skips_and_blocks_add_the_activations_of_the_layers_that_recipes_md_names(skips: bool, blocks: str) -> None:
    config = compose.load(
        [
            *("data.shards=x", "experiment=faces64", "model.completion.width=0.1"),
            *(f"model.completion.skips={skips}", f"model.completion.blocks={blocks}"),
        ]
    )
    network = build_completion(config).eval()
    assert isinstance(network, CompletionNetwork)
    photos, masks = photos_and_masks(32)
    with torch.no_grad():
        output = network(photos, masks)
        inputs = network.fill(photos, masks)
        layers = list(network.layers)

        def run(x: torch.Tensor, *numbers: int) -> torch.Tensor:
            for number in numbers:
                x = layers[number](x)
            return x

        full = run(inputs, 0)
        half = run(full, 1, 2)
        x = run(half, 3)
        # Four pairs at a quarter of the size: undilated, two of dilations, undilated.
        for pair in ((4, 5), (6, 7), (8, 9), (10, 11)):
            x = run(x, *pair) + (x if blocks == "residual" else 0)
        x = run(x, 12) + (half if skips else 0)
        x = run(x, 13, 14) + (full if skips else 0)
        expected = colours_from_logits(run(x, 15, 16), inputs[:, :3])
    torch.testing.assert_close(output, expected)
    assert len(layers) == 17
