"""Builds the configured networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TypeVar

import torch
from torch import nn

from glci_dist import components
from glci_dist.components import Component
from glci_dist.config import CompletionConfig, Config
from glci_dist.data.stages import sizes_of_photos
from glci_dist.errors import UserError
from glci_dist.models.batch_norm import set_group
from glci_dist.models.completion import CompletionNetwork
from glci_dist.models.context_encoder import ContextEncoder
from glci_dist.models.contracts import check_completion, check_discriminators, convert_layers
from glci_dist.models.discriminators import ContextDiscriminators, Discriminators
from glci_dist.models.sizes import check_models

Network = TypeVar("Network", bound=nn.Module)


_OF_GLCIC_ALONE = ("enlarge", "skips", "blocks", "dilations")


def unused_settings(config: Config) -> list[str]:
    """The keys of ``model.completion`` that differ from the paper's and that the chosen network does not use."""
    chosen, default = config.model.completion, CompletionConfig()
    if chosen.custom:
        unused = [each.name for each in fields(chosen) if each.name != "custom"]
    else:
        unused = list(_OF_GLCIC_ALONE) if chosen.kind == "context_encoder" else []
    return [key for key in unused if getattr(chosen, key) != getattr(default, key)]


def build_completion(config: Config) -> nn.Module:
    """The completion network; its weights are drawn with ``config.seed`` and are equal on every rank."""
    check_models(config)
    chosen, size = config.model.completion, config.data.size
    network: nn.Module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if chosen.custom:
            network = _custom(components.one("model.completion.custom", chosen.custom), nn.Module, size=size)
        elif chosen.kind == "context_encoder":
            network = ContextEncoder(
                size=size, width=chosen.width, fill=chosen.fill, mirror=chosen.mirror, residual=chosen.residual
            )
        else:
            network = CompletionNetwork(
                width=chosen.width,
                enlarge=chosen.enlarge,
                fill=chosen.fill,
                mirror=chosen.mirror,
                residual=chosen.residual,
                skips=chosen.skips,
                blocks=chosen.blocks,
                dilations=chosen.dilations,
            )
    set_group(network, config.model.batch_norm.group)
    return network


def build_discriminators(config: Config) -> Discriminators:
    """The discriminators; their weights are drawn with ``config.seed`` and are equal on every rank."""
    chosen, size, patch = config.model.discriminator, config.data.size, config.holes.patch
    network: Discriminators
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        if chosen.custom:
            part = components.one("model.discriminator.custom", chosen.custom)
            network = _custom(part, Discriminators, size=size, patch=patch)
        else:
            network = ContextDiscriminators(size=size, patch=patch, config=chosen)
    set_group(network, config.model.batch_norm.group)
    return network


def check_custom(config: Config) -> None:
    """Raise ``UserError`` if a network of the user's own breaks a rule."""
    size, patch, losses = config.data.size, config.holes.patch, config.losses
    per_photo = bool(losses.r1 or losses.gradient_penalty or any(losses.penalties.values()))

    def check_at_all_sizes(network: nn.Module) -> None:
        for each, _ in sizes_of_photos(config):
            check_completion(network, size=each, key="model.completion.custom")

    checks: list[tuple[Mapping[str, object], Callable[[Config], nn.Module], Callable[[nn.Module], None]]] = [
        (config.model.completion.custom, build_completion, check_at_all_sizes),
        (
            config.model.discriminator.custom,
            build_discriminators,
            lambda network: check_discriminators(
                network,
                size=size,
                patch=patch,
                key="model.discriminator.custom",
                per_photo=per_photo,
                with_features=bool(losses.feature_matching),
            ),
        ),
    ]
    for custom, build, check in checks:
        if not custom:
            continue
        network, again = build(config), build(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            check(network)
        ours, theirs = network.state_dict(), again.state_dict()
        different = next((name for name in ours if not torch.equal(ours[name], theirs[name])), None)
        if different is not None:
            raise UserError(
                f"{custom[components.TARGET]}: {different} differs from one construction to the next: draw weights "
                "from torch's generator alone, which the run seeds"
            )


def _custom(component: Component, base: type[Network], **provided: int) -> Network:
    network = component.make(base, **provided)
    convert_layers(network, component.key)
    return network
