"""The parts of the train step that a configuration chooses, constructed and checked before any rank trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glci_dist.config import Config
from glci_dist.data.stages import sizes_of_photos
from glci_dist.errors import UserError, in_a_line
from glci_dist.models.batch_norm import local_statistics
from glci_dist.models.build import build_discriminators, check_custom
from glci_dist.training.gan_metrics import CompletionMetric, completion_metrics
from glci_dist.training.loss_terms import WeightedTerm, example_completions, loss_terms
from glci_dist.training.penalties import PenaltyInputs, WeightedPenalty, penalties


@dataclass(frozen=True)
class StepParts:
    """Loss terms, penalties and metrics of the completions."""

    terms: list[WeightedTerm]
    penalties: list[WeightedPenalty]
    metrics: list[CompletionMetric]


def step_parts(config: Config, device: torch.device) -> StepParts:
    """The parts of a configuration, its custom networks checked as well; no collective is called.

    Raises ``UserError`` for a part of the user's that breaks a rule or fails.
    """
    examples = [example_completions(device, size=size, patch=patch) for size, patch in sizes_of_photos(config)]
    try:
        check_custom(config)
        parts = StepParts(
            loss_terms(config.losses, device, examples),
            penalties(config.losses),
            completion_metrics(config.metrics, device, examples),
        )
        _check_penalties(config, parts.penalties)
    except UserError:
        raise
    except Exception as error:  # the user's classes can raise anything
        raise UserError(f"the parts of the train step cannot be made: {in_a_line(error)}") from error
    return parts


def _check_penalties(config: Config, found: list[WeightedPenalty]) -> None:
    """Try the user's penalties on two photos with the configured discriminators, on the CPU."""
    custom = [each for each in found if each.metric is not None]
    if not custom:
        return
    size, patch = config.data.size, config.holes.patch
    network = build_discriminators(config)
    generator = torch.Generator().manual_seed(0)
    photos, completed = (torch.rand(2, 3, size, size, generator=generator) for _ in range(2))
    corners = torch.zeros(2, 2, dtype=torch.int32)

    def value(each: WeightedPenalty, count: int) -> Tensor:
        shares = torch.full((count,), 0.5)
        inputs = PenaltyInputs(
            network.logits, photos[:count], completed[:count], lambda: shares, corners[:count], corners[:count], patch
        )
        return each.penalty(inputs)

    for each in custom:
        assert each.metric is not None
        key = f"losses.penalties.{each.metric.name.partition('/')[2]}"
        try:
            with local_statistics(), torch.random.fork_rng(devices=[]):
                both, alone = value(each, 2), value(each, 1)
                if tuple(both.shape) != (2,) or not both.isfinite().all():
                    raise UserError(
                        f"{key}: the value for two photos must be finite, one a photo, (2,), not {tuple(both.shape)}"
                    )
                if not torch.allclose(both[:1], alone, rtol=1e-3, atol=1e-6):
                    raise UserError(f"{key}: a photo's value depends on the photos beside it")
                both.mean().backward()
        except UserError:
            raise
        except Exception as error:  # the user's class can raise anything
            raise UserError(f"{key} fails on two photos: {in_a_line(error)}") from error
        if all(parameter.grad is None for parameter in network.parameters()):
            raise UserError(f"{key}: the value has no gradient with respect to the discriminators' weights")
        network.zero_grad(set_to_none=True)
