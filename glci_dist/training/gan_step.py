"""The GAN train step: one step of the completion network and the discriminators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from glci_dist.config import LossConfig
from glci_dist.data.masks import crop_patches
from glci_dist.models.discriminators import DiscriminatorInput, Discriminators
from glci_dist.training import noise
from glci_dist.training.adversarial_weight import AdversarialWeight
from glci_dist.training.device_batch import DeviceBatch
from glci_dist.training.engines import Engine, Update
from glci_dist.training.gan_metrics import (
    BATCH_NORM_GAP,
    COMPLETION_METRICS,
    LOGIT_GAP,
    SHARE_IN_HOLE,
    CompletionMetric,
    batch_norm_gap,
    share_in_hole,
)
from glci_dist.training.loss_terms import Completions, WeightedTerm
from glci_dist.training.losses import (
    adversarial,
    composite,
    discriminator_losses,
    feature_matching,
    real_threshold,
    reconstruction,
)
from glci_dist.training.metric_registry import Metric, OverRanks
from glci_dist.training.penalties import PenaltyInputs, WeightedPenalty
from glci_dist.training.phases import StepPlan

_ACCURACY, _LOSSES = "discriminator accuracy", "losses"
RECONSTRUCTION = Metric("loss/reconstruction", "squared or absolute error", label="reconstruction")
ADVERSARIAL = Metric("loss/adversarial", panel=_LOSSES, label="adversarial")
FEATURE_MATCHING = Metric("loss/feature_matching", "difference of activations", label="feature matching")
REAL_LOSS = Metric("loss/real", panel=_LOSSES, label="real loss")
COMPLETED_LOSS = Metric("loss/completed", panel=_LOSSES, label="completed loss")
PENALTY = Metric("loss/penalty", "all penalties, weighted", label="penalty")
REAL_ACCURACY = Metric("accuracy/real", "share", panel=_ACCURACY, label="real accuracy")
COMPLETED_ACCURACY = Metric("accuracy/completed", "share", panel=_ACCURACY, label="completed accuracy")
RECONSTRUCTION_GRADIENT = Metric(
    "gradient_at_output/reconstruction", "norm", over_ranks=OverRanks.NORM, panel="gradient at the output"
)
"""Gradient of all non-adversarial losses, weighted, at the completion network's output."""
ADVERSARIAL_GRADIENT = Metric(
    "gradient_at_output/adversarial_without_alpha", "norm", over_ranks=OverRanks.NORM, is_shown=False
)
"""Gradient of the adversarial loss at the completion network's output, unweighted."""

Values = dict[Metric, list[Tensor]]


@dataclass(frozen=True)
class StepMeasurements:
    """The measurements of a step on this rank's slots."""

    values: Mapping[Metric, Tensor] = field(default_factory=dict)
    """Scalars on the device: means over the slots, squared norms of gradients; only for what the step computed."""
    alpha: float | None = None
    """Weight of the adversarial loss; None without a completion update."""
    completion: Update | None = None
    discriminator: Update | None = None

    @property
    def skipped(self) -> bool:
        """Whether an update was not applied, as its gradient was not finite or beyond its limit."""
        return any(update is not None and not update.applied for update in (self.completion, self.discriminator))


@dataclass(frozen=True)
class GradientNormLimits:
    """Gradient norms beyond which an update is not applied."""

    completion: float = math.inf
    discriminator: float = math.inf


NO_NORM_LIMITS = GradientNormLimits()


class GanTrainStep:
    """The completion network, the discriminators, and how a step updates them."""

    def __init__(
        self,
        completion: Engine,
        discriminators: Engine,
        *,
        losses: LossConfig,
        accumulation: int,
        seed: int = 0,
        terms: Sequence[WeightedTerm] = (),
        penalties: Sequence[WeightedPenalty] = (),
        statistics: Sequence[CompletionMetric] = COMPLETION_METRICS,
    ) -> None:
        """``seed``: for noise. ``terms``: terms of the completion network's loss besides those in ``losses``."""
        self.completion = completion
        self.discriminators = discriminators
        self.adversarial_weight = AdversarialWeight()
        self._losses = losses
        self._accumulation = accumulation
        self._seed = seed
        self._terms, self._penalties, self._statistics = terms, penalties, statistics

    @property
    def metrics(self) -> list[Metric]:
        """All metrics that a step can have, in the order of the progress line."""
        return [
            *(RECONSTRUCTION, ADVERSARIAL, FEATURE_MATCHING),
            # The order of the progress line.
            *sorted((each.metric for each in self._terms), key=lambda metric: metric.name != "loss/perceptual"),
            *(REAL_LOSS, COMPLETED_LOSS, PENALTY),
            *(each.metric for each in self._penalties if each.metric is not None),
            *(REAL_ACCURACY, COMPLETED_ACCURACY, LOGIT_GAP, SHARE_IN_HOLE),
            *(each.metric for each in self._statistics),
            *(BATCH_NORM_GAP, RECONSTRUCTION_GRADIENT, ADVERSARIAL_GRADIENT),
        ]

    def update(
        self, batch: DeviceBatch, plan: StepPlan, limits: GradientNormLimits = NO_NORM_LIMITS
    ) -> StepMeasurements:
        """Run the step's updates: the discriminators first, then the completion network against them.

        A network that the step does not update stays bitwise unchanged. With several micro-batches the
        completed photos are computed once for each network, so that only one micro-batch's activations
        are held at a time; the result is the same.
        """
        parts = list(batch.micro_batches(self._accumulation))
        outputs: Tensor | None = None
        values: Values = {}
        discriminator = completion = None
        if plan.updates_discriminator:
            shared = plan.updates_completion and len(parts) == 1
            for part in parts:
                outputs = self._complete(part, keep_graph=shared)
                _extend(values, self._discriminator_step(part, outputs.detach(), plan, is_last=part is parts[-1]))
            discriminator = self.discriminators.step(plan.discriminator_lr, limits.discriminator)
            outputs = outputs if shared else None
        if plan.updates_completion:
            for part in parts:
                outputs = self._complete(part, keep_graph=True) if outputs is None else outputs
                _extend(values, self._generator_step(part, outputs, plan, is_last=part is parts[-1]))
                outputs = None
            gap = batch_norm_gap(self.completion.network)
            _extend(values, {BATCH_NORM_GAP: gap} if gap is not None else {})
            completion = self.completion.step(plan.completion_lr, limits.completion)
        means = {metric: torch.stack(each).mean() for metric, each in values.items()}
        alpha = self.adversarial_weight.alpha(plan) if plan.updates_completion else None
        return StepMeasurements(means, alpha=alpha, completion=completion, discriminator=discriminator)

    def _complete(self, part: DeviceBatch, *, keep_graph: bool) -> Tensor:
        if keep_graph:
            return self.completion(part.photos, part.masks)
        with torch.no_grad(), self.completion.frozen() as network:
            return network(part.photos, part.masks)

    def _discriminator_step(
        self, part: DeviceBatch, outputs: Tensor, plan: StepPlan, *, is_last: bool
    ) -> dict[Metric, Tensor]:
        """Compute the discriminators' loss and its gradient; the completed photos are detached."""
        losses = self._losses
        completed = composite(outputs, part.photos, part.masks)
        real_logits, completed_logits = self.discriminators(
            self._input(part.photos, part.real_patches, part, plan, purpose="noise on real photos"),
            self._input(completed, part.fake_patches, part, plan, purpose="noise on completed photos"),
        )
        real_loss, completed_loss = discriminator_losses(real_logits, completed_logits, losses)
        loss = (real_loss + completed_loss) / 2
        found = {
            REAL_LOSS: real_loss.detach(),
            COMPLETED_LOSS: completed_loss.detach(),
            LOGIT_GAP: (real_logits.mean() - completed_logits.mean()).detach(),
        }
        limit = real_threshold(losses)
        if limit is not None:
            found[REAL_ACCURACY] = (real_logits > limit).float().mean()
            found[COMPLETED_ACCURACY] = (completed_logits <= limit).float().mean()
        if self._penalties and plan.discriminator_update % losses.penalty_every == 0:
            penalty = losses.penalty_every * self._penalty(part, completed, plan, found)
            found[PENALTY] = penalty.detach()
            loss = loss + penalty
        self.discriminators.backward(loss, is_last=is_last)
        return found

    def _penalty(self, part: DeviceBatch, completed: Tensor, plan: StepPlan, found: dict[Metric, Tensor]) -> Tensor:
        """The weighted sum of the penalties."""
        logits, slots = cast(Discriminators, self.discriminators.network).logits, part.slots
        inputs = PenaltyInputs(
            logits,
            part.photos,
            completed,
            lambda: noise.interpolation_weights(seed=self._seed, step=plan.step, slots=slots).to(completed.device),
            part.real_patches,
            part.fake_patches,
            part.patch,
        )
        total = part.photos.new_zeros(())
        for each in self._penalties:
            value = each.penalty(inputs).mean()
            if each.metric is not None:
                found[each.metric] = value.detach()
            total = total + each.weight * value
        return total

    def _generator_step(
        self, part: DeviceBatch, outputs: Tensor, plan: StepPlan, *, is_last: bool
    ) -> dict[Metric, Tensor]:
        """Compute the completion network's loss and its gradient; the discriminators are frozen."""
        network_outputs = outputs
        if plan.alpha:
            # A leaf for gradients at the output: DeepSpeed allows only its own backward through the network.
            outputs = outputs.detach().requires_grad_()
        error = reconstruction(outputs, part.photos, part.masks, self._losses)
        loss = plan.reconstruction * error
        found = {RECONSTRUCTION: error.detach(), **self._statistics_of(network_outputs.detach(), part)}
        completions = self._completions(outputs, part)
        for each in self._terms:
            value = each.term(completions).mean()
            found[each.metric] = value.detach()
            loss = loss + each.weight * value
        if plan.alpha:
            gradient = self._output_gradient(loss, completions, part, plan, found)
            loss = (network_outputs * gradient).sum()
        self.completion.backward(loss, is_last=is_last)
        return found

    def _output_gradient(
        self,
        loss: Tensor,
        completions: Completions,
        part: DeviceBatch,
        plan: StepPlan,
        found: dict[Metric, Tensor],
    ) -> Tensor:
        """The gradient of ``loss`` and of the adversarial terms at ``completions.outputs``, a leaf.

        Each term's gradient is computed separately, at no extra cost, so that their norms are known at every step.
        """
        losses, outputs, completed = self._losses, completions.outputs, completions.composites
        with self.discriminators.frozen() as network:
            discriminators = cast(Discriminators, network)
            inputs = [self._input(completed, part.fake_patches, part, plan, purpose="noise on completed photos")]
            if losses.feature_matching or discriminators.joint_batch_norm:
                place = part.fake_patches if losses.feature_matching else part.real_patches
                inputs.append(self._input(part.photos, place, part, plan, purpose="noise on real photos"))
            answers = discriminators.all_logits_and_features(*inputs)
        term = adversarial(answers[0][0], losses)
        found[ADVERSARIAL] = term.detach()
        # In fp16, unscaled gradients would underflow in the discriminators.
        scale = self.completion.loss_scale
        (of_losses,) = torch.autograd.grad(loss * scale, outputs, retain_graph=True)
        (at_composites,) = torch.autograd.grad(term * scale, completed, retain_graph=bool(losses.feature_matching))
        found[SHARE_IN_HOLE] = share_in_hole(at_composites, part.masks)
        # The composite depends on the output in the hole alone.
        of_losses, of_adversarial = of_losses / scale, at_composites * part.masks / scale
        # The loss is the mean over micro-batches.
        found[RECONSTRUCTION_GRADIENT] = of_losses.square().sum() / self._accumulation
        found[ADVERSARIAL_GRADIENT] = of_adversarial.square().sum() / self._accumulation
        total = of_losses + self.adversarial_weight.alpha(plan) * of_adversarial
        if losses.feature_matching:
            matching = feature_matching(answers[0][1], [each.detach() for each in answers[1][1]])
            found[FEATURE_MATCHING] = matching.detach()
            (more,) = torch.autograd.grad(matching * scale, outputs)
            total = total + losses.feature_matching * more / scale
        return total

    @torch.no_grad()
    def _statistics_of(self, outputs: Tensor, part: DeviceBatch) -> dict[Metric, Tensor]:
        completions = self._completions(outputs, part)
        values = ((each.metric, each(completions)) for each in self._statistics)
        return {metric: value.mean() for metric, value in values if value is not None}

    def _completions(self, outputs: Tensor, part: DeviceBatch) -> Completions:
        return Completions(outputs, part.photos, part.masks, part.fake_patches, part.patch)

    def _input(
        self, images: Tensor, corners: Tensor, part: DeviceBatch, plan: StepPlan, *, purpose: str
    ) -> DiscriminatorInput:
        """The discriminators' input: images with instance noise, and their local patches at ``corners``."""
        strength = self._losses.instance_noise * plan.left
        if strength:
            drawn = noise.gaussian(images, purpose=purpose, seed=self._seed, step=plan.step, slots=part.slots)
            images = images + strength * drawn
        return images, crop_patches(images, corners, part.patch)


def _extend(values: Values, found: Mapping[Metric, Tensor]) -> None:
    for metric, value in found.items():
        values.setdefault(metric, []).append(value)
