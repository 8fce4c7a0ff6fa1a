"""What photos and composites are measured by, beside their pixels: networks that see what pixels do not tell.

A yardstick looks at pictures, at the whole or at the hole's neighbourhood alone, and tells how far two pictures
are apart, or leaves features whose distribution over all photos is compared, or both.
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

WHOLE, HOLE = "", "_hole"
"""What of a picture is looked at, as the suffix of a figure's name: all of it, or the hole's neighbourhood."""


@dataclass(frozen=True)
class Seen:
    """What a yardstick saw in N pictures."""

    details: Sequence[Tensor]
    """For ``compare``."""
    features: Tensor | None = None
    """(N, D), whose distribution is compared."""


class Yardstick(ABC):
    """One network and what it tells."""

    pair: str | None = None
    """Name of the figure that ``compare`` gives."""
    distribution: str | None = None
    """Name of the Frechet distance between its features."""
    regions: Sequence[str] = (WHOLE, HOLE)
    """What it looks at."""
    for_baselines = True
    """Whether it is cheap enough to look at the baselines' composites too."""

    @abstractmethod
    def look(self, pictures: Tensor, photos: Tensor) -> Seen:
        """Look at pictures (N, 3, H, W) in [0, 1], made of ``photos`` of the same shape."""

    def compare(self, one: Seen, other: Seen) -> Tensor:
        """How far the first pictures are from the others, (N,)."""
        raise NotImplementedError(f"{type(self).__name__} compares distributions alone")


class EfficientNet(Yardstick):
    """Frechet and perceptual distance on EfficientNet-Lite0, from a package. No FID, no LPIPS: other networks.

    Pictures smaller than 128 px are enlarged to that, as the network sees little in smaller ones.
    """

    pair, distribution = "perceptual", "frechet"
    _LEAST = 128

    def __init__(self, device: torch.device) -> None:
        self._network = load_efficientnet().to(device)
        self._device = device

    def look(self, pictures: Tensor, photos: Tensor) -> Seen:
        pictures = enlarged(pictures.to(self._device), self._LEAST)
        maps, pooled = self._network(pictures.contiguous(memory_format=torch.channels_last))
        return Seen(maps, pooled.cpu())

    def compare(self, one: Seen, other: Seen) -> Tensor:
        return perceptual(one.details, other.details).cpu()


class Inception(Yardstick):
    """FID on its own network, InceptionV3 (``pt_inception-2015-12-05-6726825d.pth``)."""

    distribution = "fid"

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Raises UserError where the weights cannot be read or are another network's."""
        saved = load_weights(weights, "--fid-weights")
        try:
            self._network = InceptionV3(saved).to(device)
        except (RuntimeError, AttributeError) as error:
            raise UserError(f"--fid-weights={weights} holds other weights than InceptionV3's for FID") from error
        self._device = device

    def look(self, pictures: Tensor, photos: Tensor) -> Seen:
        # The published figure is over bytes.
        levels = (pictures.to(self._device) * 255).round()
        return Seen((), self._network(levels).cpu())


class Lpips(Yardstick):
    """LPIPS (Zhang et al., CVPR 2018), version 0.1 on AlexNet (``alexnet-owt-7be5be79.pth``)."""

    pair = "lpips"
    _LEAST = 64
    """px; AlexNet's last pooling has nothing to pool in much smaller ones."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Raises UserError where the weights cannot be read or are another network's."""
        saved = load_weights(weights, "--lpips-weights")
        self._slices = alexnet_trunk()
        try:
            state = {name.removeprefix("features."): saved[name] for name in saved if name.startswith("features.")}
            self._slices.load_state_dict(state)
        except (RuntimeError, AttributeError) as error:
            raise UserError(f"--lpips-weights={weights} holds other weights than AlexNet's") from error
        self._slices = self._slices.to(device).eval().requires_grad_(False)
        self._device, self._channels = device, [each.to(device) for each in _learned_channels()]

    def look(self, pictures: Tensor, photos: Tensor) -> Seen:
        pictures = enlarged(pictures.to(self._device), self._LEAST)
        x = (pictures * 2 - 1 - pictures.new_tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / pictures.new_tensor(
            [0.458, 0.448, 0.450]
        ).view(1, 3, 1, 1)
        maps = []
        for layer in self._slices:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return Seen(maps)

    def compare(self, one: Seen, other: Seen) -> Tensor:
        distances = [
            ((a - b).square() * channels).sum(1).mean((1, 2))
            for a, b, channels in zip(one.details, other.details, self._channels, strict=True)
        ]
        return torch.stack(distances).sum(0).cpu()


def enlarged(pictures: Tensor, least: int) -> Tensor:
    """Pictures (N, 3, S, S), bilinearly enlarged to ``least`` px where they are smaller."""
    if pictures.shape[-1] >= least:
        return pictures
    return F.interpolate(pictures, size=(least, least), mode="bilinear", align_corners=False)


def load_weights(path: Path, option: str) -> dict[str, Tensor]:
    """A file of weights; nothing in it is run. Raises UserError where it cannot be read."""
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
    """AlexNet's convolutions (Krizhevsky 2014), numbered as torchvision numbers them."""
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
    """The five layers' learned weights of the channels, ``(1, C, 1, 1)``; torchmetrics carries them."""
    import torchmetrics.functional.image.lpips as carrier

    path = Path(str(carrier.__file__)).parent / "lpips_models" / "alex.pth"
    saved = torch.load(path, map_location="cpu", weights_only=True)
    return [saved[f"lin{number}.model.1.weight"] for number in range(5)]
