"""The networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from glci_dist.config.fields import Rule, above, at_least, below_one, component, one_of, ruled


@dataclass
class CompletionConfig:
    """The completion network."""

    kind: str = one_of("glcic", "context_encoder")
    """``glcic`` (Iizuka et al., 2017) or ``context_encoder`` (Pathak et al., 2016)."""
    width: float = above(0, default=1.0)
    """Multiplier of every hidden channel count."""
    enlarge: str = one_of("deconvolution", "resize", "resize_after")
    """Upsampling of ``glcic``: ``deconvolution`` (the paper's), ``resize`` (nearest neighbour, then a convolution) or
    ``resize_after`` (a convolution, then nearest neighbour: a quarter of the cost; detail has to come by ``skips``)."""
    fill: str = one_of("mean", "pyramid")
    """How the network's input fills the hole: ``mean`` (the mean colour, the paper's) or ``pyramid`` (from the pixels
    around the hole, smoothly)."""
    mirror: bool = False
    """Whether the network also sees the filled photo and the mask mirrored left to right: for upright faces, whose
    other half may show what the hole hides."""
    residual: bool = False
    """Whether the output is a change of the filled photo (in logits) instead of the photo itself (the paper's)."""
    skips: bool = False
    """Whether ``glcic`` adds its encoder's activations at full and at half the size to its decoder's."""
    blocks: str = one_of("plain", "residual")
    """The eight layers of ``glcic`` at a quarter of the size: ``plain`` (the paper's), or in ``residual`` pairs."""
    dilations: list[int] = ruled(
        Rule(
            lambda dilations: len(dilations) == 4 and all(dilation >= 1 for dilation in dilations),
            "must be four numbers of at least 1",
        ),
        default_factory=lambda: [2, 4, 8, 16],
    )
    """Dilations of the four dilated layers of ``glcic`` (the paper's: 2, 4, 8, 16). One that reaches a quarter of
    ``data.size`` uses only the middle of its kernel."""
    custom: dict[str, Any] = component("size")
    """Your own network instead of the keys above: ``_target_``, a dotted path to a class, and its arguments."""


@dataclass
class DiscriminatorConfig:
    """The context discriminators."""

    kind: str = one_of("global_local", "global", "local")
    """Branches: ``global_local`` (both), ``global`` or ``local``."""
    width: float = above(0, default=1.0)
    """Multiplier of every channel count."""
    normalization: str = one_of("batch", "spectral", "none")
    """``batch`` (batch norm, the paper's), ``spectral`` (spectral norm of every layer) or ``none``."""
    batch_norm: str = one_of("apart", "together")
    """Whether batch norm normalises real and completed photos ``apart`` or ``together``, as one batch."""
    slope: float = below_one(default=0.0)
    """Negative slope of the activations: 0 is ReLU (the paper's), 0.2 a usual LeakyReLU."""
    custom: dict[str, Any] = component("size", "patch")
    """Your own discriminators instead of the keys above: ``_target_``, a dotted path to a class, and its arguments."""


@dataclass
class BatchNormConfig:
    """Batch norm in both networks."""

    group: int = at_least(
        0, Rule(lambda group: group != 1, "leaves batch norm one photo: use 0, or at least 2"), default=0
    )
    """Statistics over each run of so many consecutive slots of the batch; 0: over all of them. Where ranks hold whole
    groups, its passes need no collective. The result is the same, up to rounding, for every number of ranks and
    micro-batches that hold whole groups or an equal part of one; others are refused."""


@dataclass
class ModelConfig:
    """The networks."""

    completion: CompletionConfig = field(default_factory=CompletionConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    batch_norm: BatchNormConfig = field(default_factory=BatchNormConfig)
