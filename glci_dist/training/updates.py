"""The updates: what one step does to the completion network and to the discriminators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import cast

import torch
from torch import Tensor

from glci_dist.config import LossConfig
from glci_dist.data.batch import Batch
from glci_dist.data.masks import crop_patches, render_masks
from glci_dist.models.discriminators import ContextDiscriminators
from glci_dist.training import noise
from glci_dist.training.balance import Balance
from glci_dist.training.engines import Engine, Update
from glci_dist.training.losses import (
    adversarial,
    composite,
    discrimination,
    feature_matching,
    reconstruction,
    threshold,
    total_variation,
)
from glci_dist.training.penalties import gradient_penalty, r1
from glci_dist.training.phases import Moment
from glci_dist.training.signals import batch_norm_gap, diversity, lattice_energy, share_in_hole

Features = Callable[[Tensor, Tensor], Tensor]
"""(composites, photos), both (N, 3, H, W) in [0, 1] -> the mean perceptual distance between them."""


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
    slots: Tensor
    """``(N,)``: the photos' slots in the global batch, one after the other; on the CPU."""

    def parts(self, count: int) -> Iterator[DeviceBatch]:
        """``count`` equal micro-batches, in the order of slots."""
        for tensors in zip(*(getattr(self, each.name).chunk(count) for each in fields(self)), strict=True):
            yield DeviceBatch(*tensors)


def to_device(batch: Batch, device: torch.device, slots: range) -> DeviceBatch:
    """uint8 photos and boxes to float photos and masks on ``device``; ``slots``: theirs in the global batch."""
    # A channels-last view of the bytes: no copy before the conversion to float.
    photos = batch.photos.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
    boxes = batch.boxes.to(device, non_blocking=True)
    strokes = batch.strokes.to(device, non_blocking=True)
    return DeviceBatch(
        photos=photos,
        masks=render_masks(boxes, strokes, photos.shape[-1]),
        fake_patches=batch.fake_patches.to(device, non_blocking=True),
        real_patches=batch.real_patches.to(device, non_blocking=True),
        slots=torch.arange(slots.start, slots.stop),
    )


@dataclass(frozen=True)
class Measures:
    """What a step measured on this rank's slots; scalars on the device, None where it did not happen."""

    reconstruction: Tensor | None = None
    adversarial: Tensor | None = None
    feature_matching: Tensor | None = None
    perceptual: Tensor | None = None
    total_variation: Tensor | None = None
    real_loss: Tensor | None = None
    completed_loss: Tensor | None = None
    penalty: Tensor | None = None
    """The discriminators' penalties, weighted."""
    real_accuracy: Tensor | None = None
    """Share of real photos that the discriminators call real; None where a loss has no threshold for that."""
    completed_accuracy: Tensor | None = None
    """Share of completed photos that the discriminators call completed."""
    reconstruction_pull: Tensor | None = None
    """Squared norm of the gradient of all that is no contest at the completion network's output; weighted."""
    adversarial_pull: Tensor | None = None
    """The same of the adversarial term, without its weight."""
    alpha: float | None = None
    """The adversarial term's weight."""
    margin: Tensor | None = None
    """Mean logit of real photos less that of completed ones."""
    hole_share: Tensor | None = None
    """Share of the adversarial gradient at the composites that lies in the hole."""
    lattice: Tensor | None = None
    """Energy of the completions on the lattice of the enlargements."""
    lattice_of_photos: Tensor | None = None
    diversity: Tensor | None = None
    """How different completions of different photos are."""
    diversity_of_photos: Tensor | None = None
    batch_norm_gap: Tensor | None = None
    """How far the completion network's batches are from its running statistics."""
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
        self,
        completion: Engine,
        discriminators: Engine,
        *,
        losses: LossConfig,
        patch: int,
        accumulation: int,
        seed: int = 0,
        features: Features | None = None,
    ) -> None:
        """``seed``: of the noise. ``features``: the feature maps that the perceptual term compares."""
        self.completion = completion
        self.discriminators = discriminators
        self.balance = Balance()
        self._losses = losses
        self._patch = patch
        self._accumulation = accumulation
        self._seed = seed
        self._features = features

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
                found = _extend(found, self._judge(part, outputs.detach(), moment, is_last=part is parts[-1]))
            discriminator = self.discriminators.step(moment.discriminator_lr, limits.discriminator)
            outputs = outputs if shared else None
        if moment.updates_completion:
            for part in parts:
                outputs = self._complete(part, keep_graph=True) if outputs is None else outputs
                found = _extend(found, self._answer(part, outputs, moment, is_last=part is parts[-1]))
                outputs = None
            gap = batch_norm_gap(self.completion.network)
            found |= {"batch_norm_gap": [gap]} if gap is not None else {}
            completion = self.completion.step(moment.completion_lr, limits.completion)
        means = {name: torch.stack(values).mean() for name, values in found.items()}
        alpha = self.balance.alpha(moment) if moment.updates_completion else None
        return Measures(**means, alpha=alpha, completion=completion, discriminator=discriminator)

    def _complete(self, part: DeviceBatch, *, keep_graph: bool) -> Tensor:
        if keep_graph:
            return self.completion(part.photos, part.masks)
        with torch.no_grad(), self.completion.looked_through() as network:
            return network(part.photos, part.masks)

    def _judge(self, part: DeviceBatch, outputs: Tensor, moment: Moment, *, is_last: bool) -> dict[str, Tensor]:
        """The discriminators' loss and its gradient; the completed photos are constants to it."""
        losses = self._losses
        completed = composite(outputs, part.photos, part.masks)
        real_logits, completed_logits = self.discriminators(
            self._shown(part.photos, part.real_patches, part, moment, purpose="noise on real photos"),
            self._shown(completed, part.fake_patches, part, moment, purpose="noise on completed photos"),
        )
        real_loss, completed_loss = discrimination(real_logits, completed_logits, losses)
        loss = (real_loss + completed_loss) / 2
        found = {
            "real_loss": real_loss.detach(),
            "completed_loss": completed_loss.detach(),
            "margin": (real_logits.mean() - completed_logits.mean()).detach(),
        }
        limit = threshold(losses)
        if limit is not None:
            found["real_accuracy"] = (real_logits > limit).float().mean()
            found["completed_accuracy"] = (completed_logits <= limit).float().mean()
        if (losses.r1 or losses.gradient_penalty) and moment.discriminator_update % losses.penalty_every == 0:
            penalty = losses.penalty_every * self._penalty(part, completed, moment)
            found["penalty"] = penalty.detach()
            loss = loss + penalty
        self.discriminators.backward(loss, is_last=is_last)
        return found

    def _penalty(self, part: DeviceBatch, completed: Tensor, moment: Moment) -> Tensor:
        judge = cast(ContextDiscriminators, self.discriminators.network).judge
        losses, patch = self._losses, self._patch
        penalty = part.photos.new_zeros(())
        if losses.r1:
            penalty = penalty + losses.r1 * r1(judge, part.photos, part.real_patches, patch)
        if losses.gradient_penalty:
            shares = noise.shares(seed=self._seed, step=moment.step, slots=_range(part)).to(completed.device)
            between = gradient_penalty(judge, part.photos, completed, shares, part.fake_patches, patch)
            penalty = penalty + losses.gradient_penalty * between
        return penalty

    def _answer(self, part: DeviceBatch, outputs: Tensor, moment: Moment, *, is_last: bool) -> dict[str, Tensor]:
        """The completion network's loss and its gradient; the discriminators are only looked through."""
        losses = self._losses
        network_outputs = outputs
        if moment.alpha:
            # Where gradients are taken down to: DeepSpeed lets none but its own backward through the network's own.
            outputs = outputs.detach().requires_grad_()
        error = reconstruction(outputs, part.photos, part.masks, losses)
        loss = moment.reconstruction * error
        found = {"reconstruction": error.detach(), **self._look(network_outputs.detach(), part)}
        completed = composite(outputs, part.photos, part.masks)
        if losses.total_variation:
            variation = total_variation(completed, part.masks)
            found["total_variation"] = variation.detach()
            loss = loss + losses.total_variation * variation
        if self._features is not None:
            distance = self._features(completed, part.photos)
            found["perceptual"] = distance.detach()
            loss = loss + losses.perceptual * distance
        if moment.alpha:
            gradient = self._contested(loss, completed, outputs, part, moment, found)
            loss = (network_outputs * gradient).sum()
        self.completion.backward(loss, is_last=is_last)
        return found

    def _contested(
        self,
        loss: Tensor,
        completed: Tensor,
        outputs: Tensor,
        part: DeviceBatch,
        moment: Moment,
        found: dict[str, Tensor],
    ) -> Tensor:
        """The gradient of ``loss`` and of the adversarial terms at ``outputs``, a copy of the network's.

        Each is taken down to there by itself, which costs nothing beside their sum's: so it is known at every step
        how strongly each pulls.
        """
        losses = self._losses
        with self.discriminators.looked_through() as network:
            judge = cast(ContextDiscriminators, network)
            pairs = [self._shown(completed, part.fake_patches, part, moment, purpose="noise on completed photos")]
            if losses.feature_matching or judge.sees_together:
                place = part.fake_patches if losses.feature_matching else part.real_patches
                pairs.append(self._shown(part.photos, place, part, moment, purpose="noise on real photos"))
            seen = judge.look(*pairs)
        term = adversarial(seen[0][0], losses)
        found["adversarial"] = term.detach()
        # In fp16 a gradient below the scale would vanish on its way through the discriminators.
        scale = self.completion.loss_scale
        (pull,) = torch.autograd.grad(loss * scale, outputs, retain_graph=True)
        (seen_gradient,) = torch.autograd.grad(term * scale, completed, retain_graph=bool(losses.feature_matching))
        found["hole_share"] = share_in_hole(seen_gradient, part.masks)
        # The composite is the output in the hole, and nothing of it elsewhere.
        pull, push = pull / scale, seen_gradient * part.masks / scale
        # Over all micro-batches, whose mean the loss is.
        found["reconstruction_pull"] = pull.square().sum() / self._accumulation
        found["adversarial_pull"] = push.square().sum() / self._accumulation
        total = pull + self.balance.alpha(moment) * push
        if losses.feature_matching:
            matching = feature_matching(seen[0][1], [each.detach() for each in seen[1][1]])
            found["feature_matching"] = matching.detach()
            (more,) = torch.autograd.grad(matching * scale, outputs)
            total = total + losses.feature_matching * more / scale
        return total

    @torch.no_grad()
    def _look(self, outputs: Tensor, part: DeviceBatch) -> dict[str, Tensor]:
        """What the completions look like, beside their photos."""
        found = {
            "lattice": lattice_energy(outputs, part.masks).mean(),
            "lattice_of_photos": lattice_energy(part.photos, part.masks).mean(),
        }
        ours, theirs = (diversity(each, part.fake_patches, self._patch) for each in (outputs, part.photos))
        if ours is not None and theirs is not None:
            found |= {"diversity": ours, "diversity_of_photos": theirs}
        return found

    def _shown(
        self, images: Tensor, corners: Tensor, part: DeviceBatch, moment: Moment, *, purpose: str
    ) -> tuple[Tensor, Tensor]:
        """What the discriminators are shown of images: these with noise, and the local patches at ``corners``."""
        strength = self._losses.instance_noise * moment.left
        if strength:
            drawn = noise.gaussian(images, purpose=purpose, seed=self._seed, step=moment.step, slots=_range(part))
            images = images + strength * drawn
        return images, crop_patches(images, corners, self._patch)


def _range(part: DeviceBatch) -> range:
    first = int(part.slots[0])
    return range(first, first + len(part.slots))


def _extend(found: dict[str, list[Tensor]], values: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    return {**found, **{name: [*found.get(name, []), value] for name, value in values.items()}}
