"""GLCIC's three phases as a hand-written, single-process loop over the global batch, in plain torch.

It shares with the project the networks (whose batch norm is held against torch's own elsewhere),
the schedule's numbers and the photos. Masks, patches, composites, losses, gradients, their limits and
clipping, optimisers, running statistics and the moving average are written out here.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from glci_dist import compose
from glci_dist.config import EngineConfig
from glci_dist.data.batch import Batch
from glci_dist.data.index import load_index
from glci_dist.data.loader import StepDataset
from glci_dist.models.batch_norm import BatchNorm2d
from glci_dist.models.build import build_completion, build_discriminators
from glci_dist.models.completion import fill_colour
from glci_dist.training.phases import Schedule
from tests.distributed.recordings import Recording, make_smooth, weights


@dataclass
class PlainRecording(Recording):
    """What the loop did, and what a checkpoint of it would hold beside the weights."""

    start: dict[str, Tensor] = field(default_factory=dict)
    """The weights before the first step."""
    norms: dict[str, list[float]] = field(default_factory=dict)
    """Of each network's last gradients that were applied."""
    vectors: dict[str, Tensor] = field(default_factory=dict)
    """Both moments of each network's Adam, over all its parameters."""


def record_plain(
    overrides: list[str], colour: list[float], parts: Sequence[Sequence[int]] | None = None
) -> PlainRecording:
    """The same record as ``record`` makes of a world.

    ``parts``: the slots of each micro-batch, which batch norm sees alone; None: one of all slots.
    """
    config = compose.load(overrides)
    completion, discriminators = build_completion(config), build_discriminators(config)
    fill_colour(completion).copy_(torch.tensor(colour).view(1, 3, 1, 1))
    for network in (completion, discriminators):
        make_smooth(network)
    recording = PlainRecording()
    completing = _Side("completion", completion, (0.9, 0.99), config.engine, recording)
    judging = _Side("discriminator", discriminators, (0.5, 0.99), config.engine, recording)
    average = {name: tensor.clone() for name, tensor in completion.state_dict().items()}

    def all_weights() -> dict[str, Tensor]:
        averages = {f"average/{name}": tensor.clone() for name, tensor in average.items()}
        return {**weights(completion=completion, discriminator=discriminators), **averages}

    recording.start = all_weights()
    schedule = Schedule(config.phases)
    faces = StepDataset(
        load_index(config.data.shards),
        config.data,
        config.holes,
        seed=config.seed,
        global_batch=config.global_batch,
        slots=range(config.global_batch),
    )

    def judge(photos: Tensor, patches: Tensor) -> Tensor:
        (logits,) = discriminators((photos, patches))
        return logits

    slots = parts or [range(config.global_batch)]
    for number in range(schedule.steps):
        plan, batch = schedule.at(number), faces[number]
        cuts = [_Part.of(batch, list(part), completion, config.holes.patch) for part in slots]
        seen: dict[str, list[Tensor]] = {}
        if plan.updates_discriminator:
            for cut in cuts:
                real = judge(cut.photos, cut.real_patches)
                fake = judge(cut.completed.detach(), cut.fake_patches.detach())
                seen.setdefault("loss/real", []).append(-torch.log(torch.sigmoid(real)).mean())
                seen.setdefault("loss/completed", []).append(-torch.log(1 - torch.sigmoid(fake)).mean())
            judging.step((_mean(seen["loss/real"]) + _mean(seen["loss/completed"])) / 2, plan.discriminator_lr)
        if plan.updates_completion:
            for cut in cuts:
                squares = ((cut.outputs - cut.photos) ** 2 * cut.masks).flatten(1).sum(1)
                error = (squares / (3 * cut.masks.flatten(1).sum(1))).mean()
                seen.setdefault("loss/reconstruction", []).append(error)
                if plan.alpha:
                    logits = judge(cut.completed, cut.fake_patches)
                    seen.setdefault("loss/adversarial", []).append(-torch.log(torch.sigmoid(logits)).mean())
            loss = _mean(seen["loss/reconstruction"])
            if plan.alpha:
                loss = loss + plan.alpha * _mean(seen["loss/adversarial"])
            if completing.step(loss, plan.completion_lr):
                _follow(average, completion.state_dict(), min(config.engine.ema, (1 + number) / (10 + number)))
        for network in (completion, discriminators):
            _forget_statistics(network)
        recording.losses.append({name: float(_mean(values).detach()) for name, values in seen.items()})
    recording.weights = all_weights()
    for side in (completing, judging):
        recording.norms[side.name] = list(side.norms)
        recording.vectors |= {f"{side.name}.optimizer/{name}": moments for name, moments in side.moments().items()}
    return recording


class _Side:
    """A network with its Adam: an update whose gradient jumps is left out, a long gradient is shortened."""

    def __init__(
        self, name: str, network: nn.Module, betas: tuple[float, float], config: EngineConfig, recording: Recording
    ) -> None:
        self.name = name
        self.norms: deque[float] = deque(maxlen=config.spike_window)
        self._network, self._recording = network, recording
        self._clip, self._factor = config.gradient_clip, config.spike_factor
        self._adam = torch.optim.Adam(network.parameters(), betas=betas, eps=1e-6, fused=True)

    def step(self, loss: Tensor, lr: float) -> bool:
        """Whether the update was applied."""
        parameters = dict(self._network.named_parameters())
        # The fused optimiser reads gradients as if they lay in memory as their parameters do.
        gradients = [gradient.contiguous() for gradient in torch.autograd.grad(loss, list(parameters.values()))]
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient.clone()
        norm = float(nn.utils.clip_grad_norm_(parameters.values(), self._clip))
        is_known = len(self.norms) == self.norms.maxlen
        is_applied = not is_known or norm <= self._factor * statistics.median(self.norms)
        self._recording.gradients.append(
            {f"{self.name}/{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)}
        )
        self._recording.updates.append((self.name, is_applied))
        if is_applied:
            self.norms.append(norm)
            self._adam.param_groups[0]["lr"] = lr
            self._adam.step()
            _blend_statistics(self._network)
        return is_applied

    def moments(self) -> dict[str, Tensor]:
        states = [self._adam.state[parameter] for parameter in self._network.parameters()]
        return {name: torch.cat([state[name].flatten() for state in states]) for name in ("exp_avg", "exp_avg_sq")}


@dataclass(frozen=True)
class _Part:
    """A micro-batch and what the completion network makes of it."""

    photos: Tensor
    masks: Tensor
    outputs: Tensor
    completed: Tensor
    real_patches: Tensor
    fake_patches: Tensor

    @classmethod
    def of(cls, batch: Batch, slots: list[int], completion: nn.Module, patch: int) -> _Part:
        photos, masks = _photos(batch)[slots], _masks(batch)[slots]
        outputs = completion(photos, masks)
        completed = photos * (1 - masks) + outputs * masks
        return cls(
            photos,
            masks,
            outputs,
            completed,
            real_patches=_cut(photos, batch.real_patches[slots], patch),
            fake_patches=_cut(completed, batch.fake_patches[slots], patch),
        )


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def _follow(average: dict[str, Tensor], current: dict[str, Tensor], share: float) -> None:
    """An exponential moving average keeps ``share`` of itself; counts of batches it leaves alone."""
    for name, tensor in average.items():
        if tensor.is_floating_point():
            tensor.copy_(share * tensor + (1 - share) * current[name])


def _blend_statistics(network: nn.Module) -> None:
    """Running statistics follow what an updated network saw, by a tenth, photo batch by photo batch."""
    for norm in _norms(network):
        for (mean,), (variance,) in norm.recorded:
            norm.running_mean += 0.1 * (mean - norm.running_mean)
            norm.running_var += 0.1 * (variance - norm.running_var)
            norm.num_batches_tracked += 1
    _forget_statistics(network)


def _forget_statistics(network: nn.Module) -> None:
    for norm in _norms(network):
        norm.recorded.clear()


def _norms(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, BatchNorm2d)]


def _photos(batch: Batch) -> Tensor:
    return (batch.photos.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)


def _masks(batch: Batch) -> Tensor:
    count, size = len(batch.photos), batch.photos.shape[1]
    masks = torch.zeros(count, 1, size, size)
    for number, ((left, top, width, height),) in enumerate(batch.boxes.tolist()):
        masks[number, :, top : top + height, left : left + width] = 1
    return masks


def _cut(images: Tensor, corners: Tensor, side: int) -> Tensor:
    return torch.stack(
        [image[:, y : y + side, x : x + side] for image, (x, y) in zip(images, corners.tolist(), strict=True)]
    ).contiguous(memory_format=torch.channels_last)
