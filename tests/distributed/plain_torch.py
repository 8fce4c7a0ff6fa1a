"""GLCIC's three phases as a hand-written, single-process loop over the global batch, in plain torch.

It shares with the project the networks (whose batch norm is held against torch's own elsewhere),
the schedule's numbers and the photos. Masks, patches, composites, losses, gradients, optimisers and
running statistics are written out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from glci_dist import compose
from glci_dist.data.batch import Batch
from glci_dist.data.index import load_index
from glci_dist.data.loader import StepDataset
from glci_dist.models.batch_norm import BatchNorm2d
from glci_dist.models.build import build_completion, build_discriminators
from glci_dist.models.completion import fill_colour
from glci_dist.models.discriminators import ContextDiscriminators
from glci_dist.training.phases import Schedule
from tests.distributed.recordings import Recording, make_smooth


def record_plain(overrides: list[str], colour: list[float], parts: Sequence[Sequence[int]] | None = None) -> Recording:
    """The same record as ``record`` makes of a world.

    ``parts``: the slots of each micro-batch, which batch norm sees alone; None: one of all slots.
    """
    config = compose.load(overrides)
    completion, discriminators = build_completion(config), build_discriminators(config)
    fill_colour(completion).copy_(torch.tensor(colour).view(1, 3, 1, 1))
    assert isinstance(discriminators, ContextDiscriminators)
    judge = discriminators.logits
    make_smooth(completion)
    make_smooth(discriminators)
    optimizers = {
        "completion": torch.optim.Adam(completion.parameters(), betas=(0.9, 0.99), eps=1e-6, fused=True),
        "discriminator": torch.optim.Adam(discriminators.parameters(), betas=(0.5, 0.99), eps=1e-6, fused=True),
    }
    schedule, recording = Schedule(config.phases), Recording()
    faces = StepDataset(
        load_index(config.data.shards),
        config.data,
        config.holes,
        seed=config.seed,
        global_batch=config.global_batch,
        slots=range(config.global_batch),
    )

    def step(side: str, network: nn.Module, loss: Tensor, lr: float) -> None:
        optimizers[side].zero_grad()
        parameters = dict(network.named_parameters())
        # The fused optimiser reads gradients as if they lay in memory as their parameters do.
        gradients = [gradient.contiguous() for gradient in torch.autograd.grad(loss, list(parameters.values()))]
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        recording.gradients.append(
            {f"{side}/{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)}
        )
        optimizers[side].param_groups[0]["lr"] = lr
        optimizers[side].step()
        _blend_statistics(network)

    slots = parts or [range(config.global_batch)]
    for number in range(schedule.steps):
        plan, batch = schedule.at(number), faces[number]
        cuts = [_Part.of(batch, list(part), completion, config.holes.patch) for part in slots]
        if plan.updates_discriminator:
            losses = []
            for cut in cuts:
                real = judge(cut.photos, cut.real_patches)
                fake = judge(cut.completed.detach(), cut.fake_patches.detach())
                losses.append(-(torch.log(torch.sigmoid(real)).mean() + torch.log(1 - torch.sigmoid(fake)).mean()) / 2)
            step("discriminator", discriminators, torch.stack(losses).mean(), plan.discriminator_lr)
        if plan.updates_completion:
            losses = []
            for cut in cuts:
                squares = ((cut.outputs - cut.photos) ** 2 * cut.masks).flatten(1).sum(1)
                loss = (squares / (3 * cut.masks.flatten(1).sum(1))).mean()
                if plan.alpha:
                    logits = judge(cut.completed, cut.fake_patches)
                    loss = loss - plan.alpha * torch.log(torch.sigmoid(logits)).mean()
                losses.append(loss)
            step("completion", completion, torch.stack(losses).mean(), plan.completion_lr)
        for network in (completion, discriminators):
            _forget_statistics(network)
        recording.losses.append({})
    recording.weights = {
        f"{place}/{name}": tensor.detach().clone()
        for place, network in enumerate((completion, discriminators))
        for name, tensor in network.state_dict().items()
    }
    return recording


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


def _blend_statistics(network: nn.Module) -> None:
    """Running statistics follow what an updated network saw, by a tenth, photo batch by photo batch."""
    for norm in _norms(network):
        for mean, variance in norm.recorded:
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
