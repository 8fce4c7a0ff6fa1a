"""The context discriminators of GLCIC (SIGGRAPH 2017, table 2). They return logits, without a sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glci_dist.config import DiscriminatorConfig
from glci_dist.models.batch_norm import BatchNorm2d, rows_per_slot
from glci_dist.models.spectral_norm import SpectralConv2d, SpectralLinear

_CHANNELS = (64, 128, 256, 512, 512, 512)
_FEATURES = 1024

DiscriminatorInput = tuple[Tensor, Tensor]
"""Photos ``(N, 3, size, size)`` in [0, 1] and patches ``(N, 3, patch, patch)`` of them."""


class Discriminators(nn.Module):
    """Base of all discriminators; subclasses define the logits and activations of one input."""

    joint_batch_norm = False
    """Whether batch norm normalises all inputs of a pass as one batch."""

    def logits_and_features(self, photos: Tensor, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits ``(N,)``, fp32, high for real photos; and activations, ``(N, ...)`` each, for feature matching."""
        raise NotImplementedError("define logits_and_features(photos, patches)")

    def logits(self, photos: Tensor, patches: Tensor) -> Tensor:
        """Logits ``(N,)`` of one input."""
        return self.logits_and_features(photos, patches)[0]

    def forward(self, *inputs: DiscriminatorInput) -> tuple[Tensor, ...]:
        """Logits of each input. Batch norm normalises each input separately, or all as one batch."""
        return tuple(logits for logits, _ in self.all_logits_and_features(*inputs))

    def all_logits_and_features(self, *inputs: DiscriminatorInput) -> list[tuple[Tensor, list[Tensor]]]:
        """Logits and activations of each input, as ``forward`` computes them."""
        if not self.joint_batch_norm or len(inputs) == 1:
            return [self.logits_and_features(*each) for each in inputs]
        # A slot's photos are adjacent, so that batch norm sums in the order of slots.
        count = len(inputs)
        photos, patches = (torch.stack(images, 1).flatten(0, 1) for images in zip(*inputs, strict=True))
        with rows_per_slot(count):
            logits, activations = self.logits_and_features(photos, patches)
        return [(logits[place::count], [each[place::count] for each in activations]) for place in range(count)]


class Branch(nn.Module):
    """One discriminator without its head: ``(N, 3, size, size)`` to ``(N, 1024 * width)``."""

    def __init__(self, size: int, config: DiscriminatorConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for channels in _CHANNELS:
            # The rule that the paper's four networks follow: 6 convolutions for 256 px, 5 for 160, 128 and 96.
            if size <= 5:
                break
            outputs = max(1, round(config.width * channels))
            if config.normalization == "batch":
                layers += [nn.Conv2d(inputs, outputs, 5, 2, 2, bias=False), BatchNorm2d(outputs)]
            elif config.normalization == "spectral":
                layers.append(SpectralConv2d(inputs, outputs, 5, 2, 2))
            else:
                layers.append(nn.Conv2d(inputs, outputs, 5, 2, 2))
            layers.append(_activation(config.slope))
            inputs, size = outputs, -(-size // 2)
        # Without batch norm, which centres inputs and keeps their scale, inputs are centred and weights scaled here.
        self._centres_inputs = config.normalization != "batch"
        self.features = max(1, round(config.width * _FEATURES))
        self.layers = nn.Sequential(*layers)
        self.connected = nn.Sequential(_linear(inputs * size * size, self.features, config), _activation(config.slope))
        if config.normalization == "none":
            for layer in self.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    nn.init.kaiming_normal_(layer.weight, a=config.slope)
                    assert layer.bias is not None
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The features, and all activations, ``(N, ...)`` each, the features last."""
        activations = []
        x = 2 * images - 1 if self._centres_inputs else images
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
                activations.append(x)
        x = self.connected(x.flatten(1))
        return x, [*activations, x]


class ContextDiscriminators(Discriminators):
    """Global and local branch; their features are concatenated and mapped to one logit per photo."""

    def __init__(self, *, size: int, patch: int, config: DiscriminatorConfig) -> None:
        """``size``, ``patch``: sides of photos and local patches, px."""
        super().__init__()
        self.globally = Branch(size, config) if "global" in config.kind else None
        self.locally = Branch(patch, config) if "local" in config.kind else None
        features = sum(branch.features for branch in (self.globally, self.locally) if branch is not None)
        # The head; renaming it would break checkpoints, which hold the parameters' names.
        self.decide = _linear(features, 1, config)
        self.joint_batch_norm = config.batch_norm == "together"

    def logits_and_features(self, photos: Tensor, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As in the base class; the activations are those of both branches."""
        branches, activations = [], []
        for branch, images in ((self.globally, photos), (self.locally, patches)):
            if branch is not None:
                features, passed = branch(images)
                branches.append(features)
                activations += passed
        return self.decide(torch.cat(branches, 1)).squeeze(1).float(), activations


def _activation(slope: float) -> nn.Module:
    return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)


def _linear(inputs: int, outputs: int, config: DiscriminatorConfig) -> nn.Linear:
    return SpectralLinear(inputs, outputs) if config.normalization == "spectral" else nn.Linear(inputs, outputs)
