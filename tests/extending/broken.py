"""Parts that each break one rule, for tests of what is said of them."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from glci_dist.extensions import (
    Callback,
    CompletionMetric,
    Completions,
    Discriminators,
    HoleKind,
    Logger,
    LossTerm,
    MaskedInput,
    Metric,
    Penalty,
    PenaltyInputs,
    Shapes,
    StepPlan,
    integers,
)


class Network(nn.Module):
    """Keeps to every rule; the others are it with one change."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.fill = MaskedInput()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), *layers, nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(self.fill(photos, masks)).float())


class WithDropout(Network):
    def __init__(self) -> None:
        super().__init__(nn.Dropout2d(0.1))


class WithTorchsSpectralNorm(Network):
    def __init__(self) -> None:
        super().__init__(spectral_norm(nn.Conv2d(8, 8, 1)))


class WithBatchNorm1d(Network):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(8), nn.Unflatten(2, (32, 32))))


class FoldsPhotos(Network):
    """Breaks a rule where batch norm has groups of photos alone: each photo is two rows, far apart."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(8))

    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        seen = self.fill(photos, masks)
        one, mirrored = self.layers(torch.cat([seen, seen.flip(3)])).float().chunk(2)
        return torch.sigmoid(one + mirrored.flip(3))


class WithInstanceStatistics(Network):
    def __init__(self) -> None:
        super().__init__(nn.InstanceNorm2d(8, track_running_stats=True))


class WithNoise(Network):
    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        return super().forward(photos + 0.1 * torch.randn_like(photos), masks)


class WithoutMaskedInput(Network):
    def __init__(self) -> None:
        super().__init__()
        del self.fill

    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(torch.cat([photos * (1 - masks), masks], 1)))


class SeesTheHole(Network):
    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        return 0.5 * super().forward(photos, masks) + 0.5 * photos


class OfHalfSize(Network):
    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        return super().forward(photos, masks)[..., ::2, ::2]


class WithoutSigmoid(Network):
    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        return 9 * super().forward(photos, masks)


class WithAnUnusedLayer(Network):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class WithAFrozenLayer(Network):
    def __init__(self) -> None:
        super().__init__()
        self.layers[0].requires_grad_(False)


class MixesPhotos(Network):
    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        outputs = super().forward(photos, masks)
        return (outputs + outputs.mean(0, keepdim=True)) / 2


class DrawnElsewhere(Network):
    def __init__(self) -> None:
        super().__init__()
        next(self.layers.parameters()).data.fill_(random.random())


class InHalfPrecision(Network):
    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(self.fill(photos, masks)))


class ActivatedNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class WithAnActivatedNorm(Network):
    def __init__(self) -> None:
        super().__init__(ActivatedNorm(8))


class Silent(Network):
    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        raise NotImplementedError


class Fails(Network):
    def forward(self, photos: Tensor, masks: Tensor) -> Tensor:
        return super().forward(photos[:, :2], masks)


class Judges(Discriminators):
    """Keeps to every rule."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 4, 4)

    def logits_and_features(self, photos: Tensor, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.layer(photos)
        return features.mean((1, 2, 3)).float(), [features]


class WithBatchNorm(Judges):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def logits_and_features(self, photos: Tensor, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().logits_and_features(self.norm(photos), patches)


class WithoutFeatures(Judges):
    def logits_and_features(self, photos: Tensor, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().logits_and_features(photos, patches)[0], []


class LogitsAlone(Judges):
    def logits_and_features(self, photos: Tensor, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        return super().logits_and_features(photos, patches)[0]  # type: ignore[return-value]


class AMapOfLogits(Judges):
    def logits_and_features(self, photos: Tensor, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.layer(photos), []


class Term(LossTerm):
    """Keeps to every rule."""

    def __init__(self, *, power: float = 1.0, colours: list[int] | None = None) -> None:
        self.power, self.colours = power, colours

    def __call__(self, completions: Completions) -> Tensor:
        return (completions.outputs - completions.photos).abs().mean((1, 2, 3)) ** self.power


class AtThirtyTwo(Term):
    """Knows photos of one size alone."""

    def __call__(self, completions: Completions) -> Tensor:
        return super().__call__(completions) + (completions.outputs * torch.ones(32, 32)).mean((1, 2, 3))


class OfTheBatch(Term):
    def __call__(self, completions: Completions) -> Tensor:
        return super().__call__(completions).mean()


class OfTheNeighbours(Term):
    def __call__(self, completions: Completions) -> Tensor:
        values = super().__call__(completions)
        return values / values.sum()


class WithoutGradient(Term):
    def __call__(self, completions: Completions) -> Tensor:
        return super().__call__(completions).detach()


class AtRandom(Term):
    def __call__(self, completions: Completions) -> Tensor:
        return super().__call__(completions) * torch.rand(())


class NoTensor(Term):
    def __call__(self, completions: Completions) -> Tensor:
        return 1.0  # type: ignore[return-value]


class AltersPhotos(Term):
    def __call__(self, completions: Completions) -> Tensor:
        completions.photos.mul_(255)
        return super().__call__(completions)


class R(Penalty):
    """Keeps to every rule."""

    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        return inputs.gradients(inputs.photos, inputs.real_corners).square().sum((1, 2, 3))


class ROfTheBatch(R):
    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        return super().__call__(inputs).mean()


class ROfTheNeighbours(R):
    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        values = super().__call__(inputs)
        return values / values.sum()


class RWithoutGradient(R):
    def __call__(self, inputs: PenaltyInputs) -> Tensor:
        return inputs.photos.mean((1, 2, 3))


class Squares(HoleKind):
    """Keeps to every rule."""

    words, side = 2, 8

    def draw(self, words: np.ndarray, size: int) -> Shapes:
        corners = integers(words, 0, size - self.side)
        return Shapes.of_boxes(np.concatenate([corners, np.full_like(corners, self.side)], 1).astype(np.int32)[:, None])


class WithoutWords(HoleKind):
    pass


class Empty(Squares):
    side = 0


class TooLarge(Squares):
    side = 24


class WithItsOwnRandomness(Squares):
    def draw(self, words: np.ndarray, size: int) -> Shapes:
        return super().draw(np.random.default_rng().integers(0, 2**63, words.shape).astype(np.uint64), size)


class OfFloats(Squares):
    def draw(self, words: np.ndarray, size: int) -> Shapes:
        shapes = super().draw(words, size)
        return Shapes(shapes.boxes.astype(np.float32), shapes.strokes)


class WithoutMetric(CompletionMetric):
    def __call__(self, completions: Completions) -> Tensor:
        return completions.outputs.mean((1, 2, 3))


class OfAnotherName(WithoutMetric):
    metric = Metric("contest/margin")


class OfTheRunsOwn(WithoutMetric):
    metric = Metric("speed/mine")


class MeanAtThirtyTwo(WithoutMetric):
    metric = Metric("mine/mean")

    def __call__(self, completions: Completions) -> Tensor:
        return (completions.outputs * torch.ones(32, 32)).mean((1, 2, 3))


class Counts(WithoutMetric):
    metric = Metric("mine/count")

    def __call__(self, completions: Completions) -> Tensor:
        return (completions.masks > 0).sum((1, 2, 3))


class NotFinite(WithoutMetric):
    metric = Metric("contest/mine")

    def __call__(self, completions: Completions) -> Tensor:
        return super().__call__(completions) / 0


class HalfAState(Callback):
    def state_dict(self) -> dict[str, int]:
        return {}


class NoJson(HalfAState):
    def state_dict(self) -> dict[str, int]:
        return {"value": object()}  # type: ignore[dict-item]

    def load_state_dict(self, state: Mapping[str, int]) -> None: ...


class DisplayThatDecides(Callback):
    is_display = True

    def adjust(self, plan: StepPlan) -> StepPlan:
        return plan


class Unreachable(Logger):
    """A logger whose server is gone at the end of the run."""

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        raise KeyError("no such run")

    def close(self) -> None:
        raise ConnectionError("the server is gone")
