"""The networks that a configuration asks for."""

from __future__ import annotations

import torch
from torch import nn

from glci_dist.config import Config
from glci_dist.models.completion import CompletionNetwork
from glci_dist.models.context_encoder import ContextEncoder
from glci_dist.models.discriminators import ContextDiscriminators
from glci_dist.models.sizes import check_models


def build_completion(config: Config) -> nn.Module:
    """The completion network, with weights drawn from ``config.seed``: equal on every rank."""
    check_models(config)
    chosen, size = config.model.completion, config.data.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if chosen.kind == "context_encoder":
            return ContextEncoder(size=size, width=chosen.width)
        return CompletionNetwork(width=chosen.width, enlarge=chosen.enlarge)


def build_discriminators(config: Config) -> nn.Module:
    """The context discriminators, with weights drawn from ``config.seed``: equal on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        return ContextDiscriminators(size=config.data.size, patch=config.holes.patch, config=config.model.discriminator)
