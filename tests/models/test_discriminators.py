"""The context discriminators: the paper's figures, every size by its rule, and logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from glci_dist.config import DiscriminatorConfig
from glci_dist.models.batch_norm import BatchNorm2d, set_group
from glci_dist.models.discriminators import Branch, ContextDiscriminators


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(1)


def millions(branch: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in branch.parameters()) / 1e6, 1)


def pair(size: int, patch: int, *, seed: int, count: int = 4) -> tuple[Tensor, Tensor]:
    """Random photos and patches."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(count, 3, size, size, generator=generator),
        torch.rand(count, 3, patch, patch, generator=generator),
    )


@pytest.mark.parametrize(
    ("size", "convolutions", "parameters"),
    [(256, 6, 25.8), (128, 5, 19.3), (160, 5, 24.0), (96, 5, 15.6)],
)
def test_each_branch_has_the_papers_layers_and_number_of_parameters(
    size: int, convolutions: int, parameters: float
) -> None:
    branch = Branch(size, DiscriminatorConfig())

    assert millions(branch) == parameters
    layers = [module for module in branch.modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) == convolutions
    assert all((layer.kernel_size, layer.stride) == ((5, 5), (2, 2)) for layer in layers)
    assert [layer.out_channels for layer in layers] == [64, 128, 256, 512, 512, 512][:convolutions]
    assert branch.features == 1024


@pytest.mark.parametrize(("size", "patch"), [(256, 128), (160, 96), (128, 80), (64, 40)])
def test_the_sizes_of_all_experiments_give_one_logit_a_photo(size: int, patch: int) -> None:
    judge = ContextDiscriminators(size=size, patch=patch, config=DiscriminatorConfig(width=0.05))
    with torch.no_grad():
        (logits,) = judge(pair(size, patch, seed=1, count=3))

    assert logits.shape == (3,)
    assert logits.dtype == torch.float32


def test_logits_are_unbounded() -> None:
    judge = ContextDiscriminators(size=32, patch=16, config=DiscriminatorConfig(width=0.1))
    with torch.no_grad():
        judge.decide.weight.mul_(1e4)
        (logits,) = judge(pair(32, 16, seed=1))

    assert logits.abs().max() > 100
    modules = [
        type(module) for module in ContextDiscriminators(size=32, patch=16, config=DiscriminatorConfig()).modules()
    ]
    assert nn.Sigmoid not in modules


@pytest.mark.parametrize(
    ("kind", "sees_photo", "sees_patch"),
    [("global_local", True, True), ("global", True, False), ("local", False, True)],
)
def test_a_kind_sees_its_branches_only(kind: str, sees_photo: bool, sees_patch: bool) -> None:
    judge = ContextDiscriminators(size=32, patch=16, config=DiscriminatorConfig(width=0.1, kind=kind)).eval()
    photos, patches = pair(32, 16, seed=1)
    other_photos, other_patches = pair(32, 16, seed=2)
    with torch.no_grad():
        (logits,) = judge((photos, patches))
        (of_other_photos,) = judge((other_photos, patches))
        (of_other_patches,) = judge((photos, other_patches))

    assert (not of_other_photos.equal(logits)) == sees_photo
    assert (not of_other_patches.equal(logits)) == sees_patch
    assert judge.decide.in_features == (sees_photo + sees_patch) * 102


def test_real_and_completed_pairs_are_normalised_apart() -> None:
    judge = ContextDiscriminators(size=32, patch=16, config=DiscriminatorConfig(width=0.1)).train()
    real, completed = pair(32, 16, seed=1), pair(32, 16, seed=2)
    dark = (0.1 * completed[0], 0.1 * completed[1])
    with torch.no_grad():
        real_logits, completed_logits = judge(real, completed)
        assert judge(real, dark)[0].equal(real_logits)
        assert judge(completed)[0].equal(completed_logits)
        # The test can fail: photos that are normalised together do change each other's logits.
        (together,) = judge((torch.cat([real[0], dark[0]]), torch.cat([real[1], dark[1]])))
        assert not together[:4].allclose(real_logits, rtol=1e-3)


def test_no_layer_has_a_bias_before_batch_norm() -> None:
    judge = ContextDiscriminators(size=32, patch=16, config=DiscriminatorConfig(width=0.1))
    convolutions = [module for module in judge.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in judge.modules() if isinstance(module, BatchNorm2d)]

    assert len(convolutions) == len(norms) == 5
    assert all(layer.bias is None for layer in convolutions)


@pytest.mark.parametrize("judging", ["apart", "together"])
def test_a_group_has_the_same_slots_whether_real_and_completed_photos_are_normalised_together_or_apart(
    judging: str,
) -> None:
    network = ContextDiscriminators(size=32, patch=20, config=DiscriminatorConfig(width=0.05, batch_norm=judging))
    real, completed = pair(32, 20, seed=1), pair(32, 20, seed=2)
    with torch.no_grad():
        halves = [
            network(*((photos[half], patches[half]) for photos, patches in (real, completed)))
            for half in (slice(0, 2), slice(2, 4))
        ]
        set_group(network, 2)
        found = network(real, completed)
    for place in (0, 1):
        expected = torch.cat([half[place] for half in halves])
        torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-5)
