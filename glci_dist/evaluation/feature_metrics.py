"""Metrics on features of networks: distances between photo and composite, and between their distributions.

Each extracts features from pictures, or from the patch around the hole, and gives a distance between two pictures, or
features whose distributions over all photos are compared, or both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glci_dist.errors import UserError
from glci_dist.evaluation.distances import perceptual
from glci_dist.models.efficientnet import load_efficientnet
from glci_dist.models.inception import InceptionV3

WHOLE_PHOTO, HOLE_PATCH = "", "_hole"
"""The region of a picture, as the suffix of a metric's name: all of it, or the patch around the hole."""


@dataclass(frozen=True)
class Features:
    """Features of N pictures."""

    maps: Sequence[Tensor]
    """For ``compare``."""
    pooled: Tensor | None = None
    """(N, D), for the Frechet distance."""


class FeatureMetric(ABC):
    """Metrics on the features of one network."""

    distance_name: str | None = None
    """Name of the metric that ``compare`` gives."""
    frechet_name: str | None = None
    """Name of the Frechet distance between its features."""
    regions: Sequence[str] = (WHOLE_PHOTO, HOLE_PATCH)
    for_baselines = True
    """Whether it is cheap enough for the baselines' composites too."""

    @abstractmethod
    def extract(self, pictures: Tensor, photos: Tensor) -> Features:
        """Features of pictures (N, 3, H, W) in [0, 1], which are composites of ``photos`` or those themselves."""

    def compare(self, one: Features, other: Features) -> Tensor:
        """Distance between pictures, (N,)."""
        raise NotImplementedError(f"{type(self).__name__} compares distributions alone")


class EfficientNet(FeatureMetric):
    """Frechet and perceptual distance on EfficientNet-Lite0, whose weights come in a package. Not FID, not LPIPS.

    Pictures smaller than 128 px are enlarged to that: the network's features of smaller ones are poor.
    """

    distance_name, frechet_name = "perceptual", "frechet"
    _LEAST = 128

    def __init__(self, device: torch.device) -> None:
        self._network = load_efficientnet().to(device)
        self._device = device

    def extract(self, pictures: Tensor, photos: Tensor) -> Features:
        pictures = enlarged(pictures.to(self._device), self._LEAST)
        maps, pooled = self._network(pictures.contiguous(memory_format=torch.channels_last))
        return Features(maps, pooled.cpu())

    def compare(self, one: Features, other: Features) -> Tensor:
        return perceptual(one.maps, other.maps).cpu()


class Inception(FeatureMetric):
    """FID, on InceptionV3 (``pt_inception-2015-12-05-6726825d.pth``)."""

    frechet_name = "fid"

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Raises UserError if the weights cannot be read or are another network's."""
        saved = load_weights(weights, "--fid-weights")
        try:
            self._network = InceptionV3(saved).to(device)
        except (RuntimeError, AttributeError) as error:
            raise UserError(f"--fid-weights={weights} holds other weights than InceptionV3's for FID") from error
        self._device = device

    def extract(self, pictures: Tensor, photos: Tensor) -> Features:
        # The published metric is defined on bytes.
        levels = (pictures.to(self._device) * 255).round()
        return Features((), self._network(levels).cpu())


class Lpips(FeatureMetric):
    """LPIPS (Zhang et al., CVPR 2018), version 0.1 on AlexNet (``alexnet-owt-7be5be79.pth``)."""

    distance_name = "lpips"
    _LEAST = 64
    """px; AlexNet's last pooling fails on much smaller ones."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Raises UserError if the weights cannot be read or are another network's."""
        saved = load_weights(weights, "--lpips-weights")
        self._slices = alexnet_trunk()
        try:
            state = {name.removeprefix("features."): saved[name] for name in saved if name.startswith("features.")}
            self._slices.load_state_dict(state)
        except (RuntimeError, AttributeError) as error:
            raise UserError(f"--lpips-weights={weights} holds other weights than AlexNet's") from error
        self._slices = self._slices.to(device).eval().requires_grad_(False)
        self._device, self._channels = device, [each.to(device) for each in _learned_channels()]

    def extract(self, pictures: Tensor, photos: Tensor) -> Features:
        pictures = enlarged(pictures.to(self._device), self._LEAST)
        centre = pictures.new_tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        x = (pictures * 2 - 1 - centre) / pictures.new_tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        maps = []
        for layer in self._slices:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return Features(maps)

    def compare(self, one: Features, other: Features) -> Tensor:
        distances = [
            ((a - b).square() * channels).sum(1).mean((1, 2))
            for a, b, channels in zip(one.maps, other.maps, self._channels, strict=True)
        ]
        return torch.stack(distances).sum(0).cpu()


def enlarged(pictures: Tensor, least: int) -> Tensor:
    """Pictures (N, 3, S, S), bilinearly enlarged to ``least`` px where they are smaller."""
    if pictures.shape[-1] >= least:
        return pictures
    return F.interpolate(pictures, size=(least, least), mode="bilinear", align_corners=False)


def load_weights(path: Path, option: str) -> dict[str, Tensor]:
    """A file of torch weights, read without running code from it. Raises UserError if that fails."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{option}={path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(f"{option}={path} is no file of weights of torch") from error
    if not isinstance(found, dict):
        raise UserError(f"{option}={path} is no file of weights of torch")
    return found


def alexnet_trunk() -> nn.Sequential:
    """AlexNet's convolutions (Krizhevsky 2014), numbered as in torchvision."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def _learned_channels() -> list[Tensor]:
    """LPIPS's learned channel weights of the five layers, ``(1, C, 1, 1)``, from torchmetrics."""
    import torchmetrics.functional.image.lpips as carrier

    path = Path(str(carrier.__file__)).parent / "lpips_models" / "alex.pth"
    saved = torch.load(path, map_location="cpu", weights_only=True)
    return [saved[f"lin{number}.model.1.weight"] for number in range(5)]
