"""The losses are the formulas they claim to be, and no photo's hole decides how much it counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from glci_dist.config import LossConfig
from glci_dist.training.losses import adversarial, composite, discriminator_losses, reconstruction

LOGITS = np.array([-3.0, -0.5, 0.0, 0.25, 4.0])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def outputs_photos_masks() -> tuple[Tensor, Tensor, Tensor]:
    """Three photos of 8 px with holes of 1, 12 and 64 px (everything), in double precision."""
    generator = torch.Generator().manual_seed(1)
    outputs, photos = (torch.rand(3, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    masks = torch.zeros(3, 1, 8, 8, dtype=torch.float64)
    masks[0, :, 5, 5] = masks[1, :, 2:5, 1:5] = masks[2] = 1
    return outputs, photos, masks


def _within(hole: np.ndarray, distance: int) -> np.ndarray:
    """The pixels of which a hole's pixel is at most ``distance`` rows and columns away."""
    near = np.zeros_like(hole)
    for row, column in np.argwhere(hole):
        near[max(0, row - distance) : row + distance + 1, max(0, column - distance) : column + distance + 1] = True
    return near


@pytest.mark.parametrize(("kind", "power"), [("l2", 2), ("l1", 1)])
@pytest.mark.parametrize("region", ["hole", "rim", "photo"])
def test_reconstruction_is_the_mean_over_photos_of_the_mean_error_in_the_region(
    kind: str, power: int, region: str
) -> None:
    outputs, photos, masks = outputs_photos_masks()
    each = []
    for output, photo, mask in zip(outputs.numpy(), photos.numpy(), masks.numpy(), strict=True):
        reached = {"hole": mask == 1, "rim": _within(mask[0] == 1, 2)[None], "photo": np.ones_like(mask, bool)}
        inside = np.broadcast_to(reached[region], photo.shape)
        each.append((np.abs(output - photo)[inside] ** power).mean())

    loss = reconstruction(outputs, photos, masks, LossConfig(reconstruction=kind, region=region))
    assert float(loss) == pytest.approx(np.mean(each), rel=1e-12)


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_the_area_of_a_photos_hole_does_not_change_its_weight(kind: str) -> None:
    photos = torch.zeros(2, 3, 8, 8)
    small, large = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    small[..., 3, 3] = 1
    masks = torch.cat([small, large])
    config = LossConfig(reconstruction=kind)

    def loss(error_of_first: float, error_of_second: float) -> float:
        errors = torch.tensor([error_of_first, error_of_second]).view(2, 1, 1, 1).expand_as(photos)
        return float(reconstruction(errors, photos, masks, config))

    assert loss(0.5, 0) == pytest.approx(loss(0, 0.5))
    assert loss(0.5, 0.5) == pytest.approx(2 * loss(0.5, 0))


def test_a_batchs_reconstruction_is_the_mean_of_its_halves_however_it_is_cut() -> None:
    outputs, photos, masks = outputs_photos_masks()
    whole = reconstruction(outputs, photos, masks, LossConfig())
    each = [reconstruction(outputs[i : i + 1], photos[i : i + 1], masks[i : i + 1], LossConfig()) for i in range(3)]

    assert float(whole) == pytest.approx(float(torch.stack(each).mean()), rel=1e-12)


def test_an_empty_hole_costs_nothing_and_is_finite() -> None:
    outputs, photos, masks = outputs_photos_masks()
    outputs.requires_grad_()
    loss = reconstruction(outputs, photos, torch.zeros_like(masks), LossConfig())
    loss.backward()

    assert loss == 0
    assert outputs.grad is not None
    assert (outputs.grad == 0).all()


def test_the_composite_is_the_photo_outside_and_the_output_inside() -> None:
    outputs, photos, masks = outputs_photos_masks()
    completed = composite(outputs, photos, masks)

    assert completed.equal(torch.where(masks > 0, outputs, photos))


def test_only_the_hole_of_the_composite_passes_a_gradient_to_the_output() -> None:
    outputs, photos, masks = outputs_photos_masks()
    outputs.requires_grad_()
    composite(outputs, photos, masks).sum().backward()

    assert outputs.grad is not None
    assert outputs.grad.equal(masks.expand_as(outputs))


def test_the_adversarial_terms_are_their_formulas() -> None:
    logits = torch.tensor(LOGITS)

    non_saturating = adversarial(logits, LossConfig(adversarial="non_saturating"))
    assert float(non_saturating) == pytest.approx(np.mean(-np.log(sigmoid(LOGITS))))
    saturating = adversarial(logits, LossConfig(adversarial="saturating"))
    assert float(saturating) == pytest.approx(np.mean(np.log(1 - sigmoid(LOGITS))))


@pytest.mark.parametrize("kind", ["non_saturating", "saturating"])
def test_both_adversarial_terms_pull_towards_real_and_stay_finite(kind: str) -> None:
    logits = torch.tensor([-200.0, -1.0, 0.0, 1.0, 200.0], requires_grad=True)
    term = adversarial(logits, LossConfig(adversarial=kind))
    term.backward()

    assert torch.isfinite(term)
    assert logits.grad is not None
    assert (logits.grad <= 0).all()
    assert (logits.grad[1:4] < 0).all()
    # What gives them their names: the answer to a photo that is surely called completed.
    assert (logits.grad[0] == 0) == (kind == "saturating")


def test_the_discriminators_terms_are_their_formulas() -> None:
    real, completed = discriminator_losses(torch.tensor(LOGITS), torch.tensor(LOGITS - 1), LossConfig())

    assert float(real) == pytest.approx(np.mean(-np.log(sigmoid(LOGITS))))
    assert float(completed) == pytest.approx(np.mean(-np.log(1 - sigmoid(LOGITS - 1))))
