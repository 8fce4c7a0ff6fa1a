"""Each mistake of tests/history.py is in the program while it is asked for, and gone afterwards."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from glci_dist.config import CacheConfig, DiscriminatorConfig, LossConfig, OrderConfig
from glci_dist.data.batch import Batch
from glci_dist.data.decode import decode
from glci_dist.data.index import load_index
from glci_dist.data.order import Order
from glci_dist.data.store import ShardStore
from glci_dist.models.batch_norm import BatchNorm2d
from glci_dist.models.discriminators import ContextDiscriminators
from glci_dist.training import job, losses, updates
from tests.history import FAILURES

Found = TypeVar("Found")


def with_and_without(name: str, look: Callable[[], Found], data: str = "") -> tuple[Found, Found]:
    """What is seen with the mistake in the program, and after it."""
    swap = FAILURES[name].swap
    assert swap is not None
    with swap(argparse.Namespace(data=data)):
        wrong = look()
    return wrong, look()


def test_without_shuffling_every_epoch_has_the_same_order_by_brightness(faces_shards: str, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(faces_shards)
    index = load_index(faces_shards)
    store = ShardStore(index, CacheConfig())
    order = Order(index.counts, seed=0, global_batch=8, config=OrderConfig(lanes=1))

    def look() -> list[list[tuple[int, int]]]:
        epochs = (range(start, start + order.steps_per_epoch) for start in (0, order.steps_per_epoch))
        return [[sample for step in epoch for sample in order.samples(step, range(8))] for epoch in epochs]

    wrong, right = with_and_without("no-shuffle", look, str(tmp_path))
    assert len(set(wrong[0])) == len(set(right[0])) == 96
    assert wrong[0] == wrong[1]
    assert right[0] != right[1]
    brightness = [decode(store.sample(*sample)[1], short_edge=64).mean() for sample in wrong[0]]
    assert brightness == sorted(brightness)


def test_without_scale_batch_norm_only_normalises_and_learns_nothing() -> None:
    norm = BatchNorm2d(3)
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.weight.fill_(3.0)
        norm.bias.fill_(2.0)

    def look() -> tuple[float, float, float]:
        norm.zero_grad()
        y = norm(x)
        (y * x).sum().backward()
        assert norm.weight.grad is not None
        return float(y.detach().mean()), float(y.detach().std()), float(norm.weight.grad.abs().sum())

    wrong, right = with_and_without("no-scale", look)
    np.testing.assert_allclose(wrong, (0, 1, 0), atol=0.01)
    np.testing.assert_allclose(right[:2], (2, 3), atol=0.02)
    assert right[2] > 1


def test_real_patches_lie_at_the_holes() -> None:
    corners = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    boxes = torch.tensor([[[4, 4, 8, 8]]] * 2, dtype=torch.int32)
    photos = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    batch = Batch(0, photos, boxes, torch.zeros(2, 0, 5), corners, corners + 5, ("a", "b"), ())

    def look() -> Tensor:
        return job.to_device(batch, torch.device("cpu"), range(2)).real_patches

    wrong, right = with_and_without("same-place", look)
    assert torch.equal(wrong, corners)
    assert torch.equal(right, corners + 5)


def test_a_leak_has_the_discriminators_call_completed_photos_real() -> None:
    def look() -> tuple[float, float]:
        logits = torch.zeros(4, requires_grad=True)
        _, completed = updates.discrimination(torch.zeros(4), logits, LossConfig())
        completed.backward()
        assert logits.grad is not None
        return float(completed.detach()), float(logits.grad.sum())

    (wrong, push), (right, pull) = with_and_without("leaking", look)
    # What is shown of the loss is as before, but its gradient points the other way.
    np.testing.assert_allclose(wrong, right)
    np.testing.assert_allclose((push, pull), (-0.5, 0.5))


def test_a_sigmoid_stands_before_the_loss_and_is_judged_by_its_own_threshold() -> None:
    network = ContextDiscriminators(size=16, patch=8, config=DiscriminatorConfig(width=0.1))
    photos = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def look() -> tuple[Tensor, float]:
        return network.judge(photos, photos[..., :8, :8]).detach(), updates.threshold(LossConfig())

    (wrong, half), (right, zero) = with_and_without("sigmoid", look)
    torch.testing.assert_close(wrong, torch.sigmoid(right))
    assert (half, zero) == (0.5, 0.0)


def test_detached_the_adversarial_loss_is_shown_and_has_no_gradient() -> None:
    def look() -> tuple[float, float]:
        logits = torch.full((4,), -2.0, requires_grad=True)
        loss = updates.adversarial(logits, LossConfig())
        loss.backward()
        assert logits.grad is not None
        return float(loss.detach()), float(logits.grad.abs().sum())

    (wrong, nothing), (right, something) = with_and_without("detached", look)
    assert wrong == right == float(losses.adversarial(torch.full((4,), -2.0), LossConfig()))
    assert nothing == 0
    assert something > 0.5
