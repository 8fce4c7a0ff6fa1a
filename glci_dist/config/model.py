"""The networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from glci_dist.config.fields import above, below_one, component, one_of


@dataclass
class CompletionConfig:
    """The completion network."""

    kind: str = one_of("glcic", "context_encoder")
    """``glcic`` (2017) or ``context_encoder`` (2016)."""
    width: float = above(0, default=1.0)
    """Factor on every hidden channel count."""
    enlarge: str = one_of("deconvolution", "resize")
    """``deconvolution`` (the paper's) or ``resize`` (nearest, then a convolution); ``glcic`` only."""
    custom: dict[str, Any] = component("size")
    """A network of your own in place of all that: ``_target_``, a dotted path to a class, and its arguments."""


@dataclass
class DiscriminatorConfig:
    """The context discriminators."""

    kind: str = one_of("global_local", "global", "local")
    """``global_local``, or one branch alone: ``global``, ``local``."""
    width: float = above(0, default=1.0)
    """Factor on every channel count."""
    normalization: str = one_of("batch", "spectral", "none")
    """``batch`` (batch norm, the paper's), ``spectral`` (of every layer's weights) or ``none``."""
    batch_norm: str = one_of("apart", "together")
    """Whether batch norm sees real and completed photos ``apart`` or ``together``, as one batch."""
    slope: float = below_one(default=0.0)
    """Of the activations below zero: 0 is ReLU (the paper's), 0.2 a usual leaky one."""
    custom: dict[str, Any] = component("size", "patch")
    """Discriminators of your own in place of all that: ``_target_``, a dotted path to a class, and its arguments."""


@dataclass
class ModelConfig:
    """The networks."""

    completion: CompletionConfig = field(default_factory=CompletionConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
