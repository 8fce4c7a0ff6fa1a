"""The updates: what one step does to the completion network and to the discriminators."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from glci_dist.config import LossConfig
from glci_dist.data.batch import Batch
from glci_dist.data.masks import crop_patches, render_masks
from glci_dist.training.engines import Engine, Update
from glci_dist.training.losses import adversarial, composite, discrimination, reconstruction
from glci_dist.training.phases import Moment


@dataclass(frozen=True)
class DeviceBatch:
    """A rank's share of a batch, or one micro-batch of it, on the training device."""

    photos: Tensor
    """``(N, 3, H, W)`` in [0, 1], channels last."""
    masks: Tensor
    """``(N, 1, H, W)``, 1 in the hole."""
    fake_patches: Tensor
    """``(N, 2)``: left, top of the local patch on the completed photo."""
    real_patches: Tensor
    """``(N, 2)``: left, top of the local patch on the real photo."""

    def parts(self, count: int) -> Iterator[DeviceBatch]:
        """``count`` equal micro-batches, in the order of slots."""
        for tensors in zip(*(getattr(self, each.name).chunk(count) for each in fields(self)), strict=True):
            yield DeviceBatch(*tensors)


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """uint8 photos and boxes to float photos and masks on ``device``."""
    # A channels-last view of the bytes: no copy before the conversion to float.
    photos = batch.photos.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
    boxes = batch.boxes.to(device, non_blocking=True)
    strokes = batch.strokes.to(device, non_blocking=True)
    return DeviceBatch(
        photos=photos,
        masks=render_masks(boxes, strokes, photos.shape[-1]),
        fake_patches=batch.fake_patches.to(device, non_blocking=True),
        real_patches=batch.real_patches.to(device, non_blocking=True),
    )


@dataclass(frozen=True)
class Measures:
    """What a step measured on this rank's slots; scalars on the device, None where it did not happen."""

    reconstruction: Tensor | None = None
    adversarial: Tensor | None = None
    real_loss: Tensor | None = None
    completed_loss: Tensor | None = None
    real_accuracy: Tensor | None = None
    """Share of real photos that the discriminators call real."""
    completed_accuracy: Tensor | None = None
    """Share of completed photos that the discriminators call completed."""
    completion: Update | None = None
    discriminator: Update | None = None

    @property
    def skipped(self) -> bool:
        """Whether an update was not applied: its gradient was not finite, or beyond its limit."""
        return any(update is not None and not update.applied for update in (self.completion, self.discriminator))


@dataclass(frozen=True)
class Limits:
    """Gradient norms beyond which an update is not applied."""

    completion: float = math.inf
    discriminator: float = math.inf


NO_LIMITS = Limits()


class Contest:
    """The completion network and the discriminators, and how a step moves each."""

    def __init__(
        self, completion: Engine, discriminators: Engine, *, losses: LossConfig, patch: int, accumulation: int
    ) -> None:
        self.completion = completion
        self.discriminators = discriminators
        self._losses = losses
        self._patch = patch
        self._accumulation = accumulation

    def update(self, batch: DeviceBatch, moment: Moment, limits: Limits = NO_LIMITS) -> Measures:
        """The step's updates: the discriminators first, then the completion network against them.

        A network that the step does not update is left bitwise as it was. With several
        micro-batches the completed photos are computed once for each side, so that only one
        micro-batch's activations are ever held; the result is the same.
        """
        parts = list(batch.parts(self._accumulation))
        outputs: Tensor | None = None
        found: dict[str, list[Tensor]] = {}
        discriminator = completion = None
        if moment.updates_discriminator:
            shared = moment.updates_completion and len(parts) == 1
            for part in parts:
                outputs = self._complete(part, keep_graph=shared)
                found = _extend(found, self._judge(part, outputs.detach(), is_last=part is parts[-1]))
            discriminator = self.discriminators.step(moment.discriminator_lr, limits.discriminator)
            outputs = outputs if shared else None
        if moment.updates_completion:
            for part in parts:
                outputs = self._complete(part, keep_graph=True) if outputs is None else outputs
                found = _extend(found, self._answer(part, outputs, moment, is_last=part is parts[-1]))
                outputs = None
            completion = self.completion.step(moment.completion_lr, limits.completion)
        means = {name: torch.stack(values).mean() for name, values in found.items()}
        return Measures(**means, completion=completion, discriminator=discriminator)

    def _complete(self, part: DeviceBatch, *, keep_graph: bool) -> Tensor:
        if keep_graph:
            return self.completion(part.photos, part.masks)
        with torch.no_grad(), self.completion.looked_through() as network:
            return network(part.photos, part.masks)

    def _judge(self, part: DeviceBatch, outputs: Tensor, *, is_last: bool) -> dict[str, Tensor]:
        """The discriminators' loss and its gradient; the completed photos are constants to it."""
        completed = composite(outputs, part.photos, part.masks)
        real_logits, completed_logits = self.discriminators(
            (part.photos, crop_patches(part.photos, part.real_patches, self._patch)),
            (completed, crop_patches(completed, part.fake_patches, self._patch)),
        )
        real_loss, completed_loss = discrimination(real_logits, completed_logits)
        self.discriminators.backward((real_loss + completed_loss) / 2, is_last=is_last)
        return {
            "real_loss": real_loss.detach(),
            "completed_loss": completed_loss.detach(),
            "real_accuracy": (real_logits > 0).float().mean(),
            "completed_accuracy": (completed_logits <= 0).float().mean(),
        }

    def _answer(self, part: DeviceBatch, outputs: Tensor, moment: Moment, *, is_last: bool) -> dict[str, Tensor]:
        """The completion network's loss and its gradient; the discriminators are only looked through."""
        error = reconstruction(outputs, part.photos, part.masks, self._losses)
        loss = moment.reconstruction * error
        found = {"reconstruction": error.detach()}
        if moment.alpha:
            completed = composite(outputs, part.photos, part.masks)
            with self.discriminators.looked_through() as judge:
                (logits,) = judge((completed, crop_patches(completed, part.fake_patches, self._patch)))
            term = adversarial(logits, self._losses)
            loss = loss + moment.alpha * term
            found["adversarial"] = term.detach()
        self.completion.backward(loss, is_last=is_last)
        return found


def _extend(found: dict[str, list[Tensor]], values: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    return {**found, **{name: [*found.get(name, []), value] for name, value in values.items()}}
