"""The terms and penalties of the contest are their formulas; noise and balance are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glci_dist.config import LossConfig, PhaseConfig
from glci_dist.training import noise
from glci_dist.training.adversarial_weight import AdversarialWeight
from glci_dist.training.losses import (
    adversarial,
    discriminator_losses,
    feature_matching,
    real_threshold,
    total_variation,
)
from glci_dist.training.penalties import R1, GradientPenalty, Logits, PenaltyInputs
from glci_dist.training.phases import Schedule

REAL, COMPLETED = torch.tensor([-2.0, -0.5, 0.3, 1.7]), torch.tensor([-1.5, 0.2, 0.9, 2.5])


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def test_hinge_is_its_formula() -> None:
    config = LossConfig(adversarial="hinge")
    real, completed = discriminator_losses(REAL, COMPLETED, config)
    assert float(real) == pytest.approx(np.maximum(0, 1 - numbers(REAL)).mean())
    assert float(completed) == pytest.approx(np.maximum(0, 1 + numbers(COMPLETED)).mean())
    assert float(adversarial(COMPLETED, config)) == pytest.approx(-numbers(COMPLETED).mean())


def test_least_squares_is_its_formula() -> None:
    config = LossConfig(adversarial="least_squares")
    real, completed = discriminator_losses(REAL, COMPLETED, config)
    assert float(real) == pytest.approx(0.5 * ((numbers(REAL) - 1) ** 2).mean())
    assert float(completed) == pytest.approx(0.5 * (numbers(COMPLETED) ** 2).mean())
    assert float(adversarial(COMPLETED, config)) == pytest.approx(0.5 * ((numbers(COMPLETED) - 1) ** 2).mean())
    assert real_threshold(config) == 0.5


def test_wasserstein_is_its_formula() -> None:
    config = LossConfig(adversarial="wasserstein")
    real, completed = discriminator_losses(REAL, COMPLETED, config)
    assert float(real + completed) == pytest.approx(numbers(COMPLETED).mean() - numbers(REAL).mean())
    assert float(adversarial(COMPLETED, config)) == pytest.approx(-numbers(COMPLETED).mean())
    # A critic's zero means nothing: no share that it tells is known.
    assert real_threshold(config) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_cross_entropy_with_a_lower_target_for_real_photos_alone(smoothing: float) -> None:
    real, completed = discriminator_losses(REAL, COMPLETED, LossConfig(label_smoothing=smoothing))
    target = torch.full_like(REAL, 1 - smoothing)
    assert float(real) == pytest.approx(float(F.binary_cross_entropy_with_logits(REAL, target)), rel=1e-5)
    zeros = torch.zeros_like(COMPLETED)
    assert float(completed) == pytest.approx(float(F.binary_cross_entropy_with_logits(COMPLETED, zeros)), rel=1e-5)


def test_feature_matching_is_a_mean_over_layers_of_means() -> None:
    one, other = [torch.ones(2, 3), torch.zeros(2, 4, 5, 5)], [torch.zeros(2, 3), torch.full((2, 4, 5, 5), 0.5)]
    assert float(feature_matching(one, other)) == pytest.approx((1 + 0.5) / 2)


def test_total_variation_counts_the_pairs_that_touch_the_hole() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 6, 7, generator=generator)
    masks = torch.zeros(2, 1, 6, 7)
    masks[0, :, 2:4, 3:6] = 1
    masks[1, :, 0:3, 0:2] = 1
    expected = []
    for image, mask in zip(images, masks[:, 0], strict=True):
        found = []
        for y in range(6):
            for x in range(7):
                for other_y, other_x in ((y + 1, x), (y, x + 1)):
                    if other_y < 6 and other_x < 7 and (mask[y, x] or mask[other_y, other_x]):
                        found += (image[:, y, x] - image[:, other_y, other_x]).abs().tolist()
        expected.append(np.mean(found))
    assert float(total_variation(images, masks).mean()) == pytest.approx(np.mean(expected), rel=1e-5)


def inputs(
    logits: Logits, photos: Tensor, completed: Tensor, shares: Tensor, corners: Tensor, patch: int
) -> PenaltyInputs:
    return PenaltyInputs(logits, photos, completed, lambda: shares, corners, corners, patch)


def linear_judge(photos: Tensor, patches: Tensor) -> Tensor:
    """Twice the sum of a photo's values and three times that of its patch's."""
    return 2 * photos.sum((1, 2, 3)) + 3 * patches.sum((1, 2, 3))


def test_the_gradient_penalties_are_those_of_a_judge_that_can_be_reckoned_by_hand() -> None:
    photos, completed = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8)
    corners = torch.tensor([[0, 0], [2, 4], [4, 1]], dtype=torch.int32)
    # The patch of 4 px lies inside the photo: 16 places of slope 5, the other 48 of slope 2.
    squares = 3 * (16 * 25 + 48 * 4)
    given = inputs(linear_judge, photos, completed, torch.rand(3), corners, 4)
    assert float(R1()(given).mean()) == pytest.approx(squares / 2, rel=1e-5)
    assert float(GradientPenalty()(given).mean()) == pytest.approx((squares**0.5 - 1) ** 2, rel=1e-5)


def test_the_penalties_pass_a_gradient_to_the_judge() -> None:
    weight = torch.full((1,), 0.5, requires_grad=True)

    def judge(photos: Tensor, patches: Tensor) -> Tensor:
        return weight * photos.square().sum((1, 2, 3)) / 2

    photos = torch.rand(2, 3, 4, 4)
    corners = torch.zeros(2, 2, dtype=torch.int32)
    R1()(inputs(judge, photos, photos, torch.zeros(2), corners, 2)).mean().backward()
    # |w x|^2 / 2, whose derivative is w |x|^2.
    assert weight.grad is not None
    assert float(weight.grad) == pytest.approx(0.5 * float(photos.square().sum((1, 2, 3)).mean()), rel=1e-5)


def test_the_interpolates_lie_between_photo_and_completion() -> None:
    seen: list[Tensor] = []

    def judge(photos: Tensor, patches: Tensor) -> Tensor:
        seen.append(photos.detach())
        return photos.sum((1, 2, 3))

    zeros, shares = torch.zeros(2, 3, 4, 4), torch.tensor([0.25, 1.0])
    GradientPenalty()(inputs(judge, zeros, torch.ones(2, 3, 4, 4), shares, torch.zeros(2, 2).int(), 2))
    assert seen[0][:, 0, 0, 0].tolist() == [0.25, 1.0]


def test_noise_is_of_the_slot_and_the_step_whatever_the_share_of_the_batch() -> None:
    images = torch.zeros(6, 3, 16, 16)
    whole = noise.gaussian(images, purpose="a", seed=1, step=3, slots=range(6))
    part = noise.gaussian(images[:2], purpose="a", seed=1, step=3, slots=range(4, 6))
    assert torch.equal(whole[4:], part)
    for other in (
        noise.gaussian(images, purpose="b", seed=1, step=3, slots=range(6)),
        noise.gaussian(images, purpose="a", seed=1, step=4, slots=range(6)),
        noise.gaussian(images, purpose="a", seed=2, step=3, slots=range(6)),
    ):
        assert not torch.equal(whole, other)
    assert float(whole.mean()) == pytest.approx(0, abs=0.05)
    assert float(whole.std()) == pytest.approx(1, abs=0.05)
    shares = noise.interpolation_weights(seed=1, step=3, slots=range(1000))
    assert torch.equal(noise.interpolation_weights(seed=1, step=3, slots=range(7, 9)), shares[7:9])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.05)


def test_the_balance_is_measured_at_the_phases_start_and_kept() -> None:
    phase = PhaseConfig(steps=6, completion_every=1, alpha=1e-3, balance=0.5, balance_steps=2)
    schedule = Schedule({"first": phase, "second": phase, "third": PhaseConfig(steps=1, alpha=7.0, completion_every=1)})
    balance, found = AdversarialWeight(), []
    for step in range(schedule.steps):
        plan = schedule.at(step)
        found.append(balance.alpha(plan))
        again = AdversarialWeight()
        again.load_state_dict(balance.state_dict())
        assert again.alpha(plan) == found[-1]
        balance.measure(plan, reconstruction=4.0 + step, adversarial=2.0)
    # Half of (4) / (2), then half of (4 + 5) / (2 + 2); the next phase begins anew.
    assert found[:6] == [0.0, 1.0, *[pytest.approx(0.5 * 9 / 4)] * 4]
    assert found[6:12] == [0.0, 0.5 * 10 / 2, *[pytest.approx(0.5 * 21 / 4)] * 4]
    assert found[12] == 7.0


def test_the_balance_is_measured_on_updates_of_the_completion_network_however_late_they_come() -> None:
    phase = PhaseConfig(steps=100, completion_every=25, alpha=1e-3, balance=0.5, balance_steps=2)
    schedule, balance = Schedule({"joint": phase}), AdversarialWeight()
    due = [step for step in range(100) if schedule.at(step).updates_completion]
    for step in due:
        balance.measure(schedule.at(step), reconstruction=3.0 if step < 60 else 100.0, adversarial=2.0)
    assert balance.alpha(schedule.at(99)) == pytest.approx(0.5 * 3 / 2)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_discriminators_updates_are_counted_not_the_steps(every: int) -> None:
    """A penalty at every n-th of them must not fall between them."""
    phases = {"first": PhaseConfig(steps=7, completion_every=1)}
    phases["joint"] = PhaseConfig(steps=12, completion_every=1, discriminator_every=every)
    plans = [Schedule(phases).at(step) for step in range(19)]
    assert [plan.discriminator_update for plan in plans if plan.updates_discriminator] == list(range(12 // every))
