"""Where holes and patches lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from glci_dist.config import HolesConfig
from glci_dist.data.holes import Holes, check_holes, draw_holes
from glci_dist.data.masks import render_masks
from glci_dist.errors import UserError

SIZE = 64
KINDS = ["box", "boxes", "freeform", "centre"]
SLOTS = range(300)


def drawn(config: HolesConfig, *, seed: int = 3, step: int = 11, slots: range = SLOTS) -> Holes:
    check_holes(config, SIZE)
    return draw_holes(config, SIZE, seed=seed, step=step, slots=slots)


def masks_of(holes: Holes) -> np.ndarray:
    """bool (n, size, size)."""
    rendered = render_masks(torch.from_numpy(holes.boxes), torch.from_numpy(holes.strokes), SIZE)
    return rendered[:, 0].numpy().astype(bool)


def extents(masks: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom (n, 4) of each mask's pixels; right and bottom are the first px outside."""
    columns, rows = np.asarray(masks.any(1)), np.asarray(masks.any(2))
    first = [columns.argmax(1), rows.argmax(1)]
    last = [masks.shape[2] - columns[:, ::-1].argmax(1), masks.shape[1] - rows[:, ::-1].argmax(1)]
    return np.stack([*first, *last], 1)


def same(one: Holes, other: Holes) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patch", [38, 40, 64])
def test_every_hole_is_inside_the_photo_and_inside_its_patch(kind: str, patch: int) -> None:
    holes = drawn(HolesConfig(kind=kind, patch=patch))
    masks = masks_of(holes)
    assert masks.any((1, 2)).all()
    left, top, right, bottom = extents(masks).T
    patch_left, patch_top = holes.fake_patches.T
    assert ((patch_left <= left) & (patch_top <= top)).all()
    assert ((right <= patch_left + patch) & (bottom <= patch_top + patch)).all()
    assert ((holes.fake_patches >= 0) & (holes.fake_patches + patch <= SIZE)).all()
    assert ((holes.real_patches >= 0) & (holes.real_patches + patch <= SIZE)).all()
    boxes = holes.boxes
    assert (boxes >= 0).all()
    assert (boxes[:, :, :2] + boxes[:, :, 2:] <= SIZE).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_hole_is_larger_than_max_side(kind: str) -> None:
    left, top, right, bottom = extents(masks_of(drawn(HolesConfig(kind=kind, max_side=30)))).T
    assert (right - left).max() <= 30
    assert (bottom - top).max() <= 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("worlds", [2, 4])
def test_the_number_of_ranks_changes_no_hole(kind: str, worlds: int) -> None:
    config, share = HolesConfig(kind=kind), 16 // worlds
    whole = drawn(config, slots=range(16))
    parts = [drawn(config, slots=range(rank * share, (rank + 1) * share)) for rank in range(worlds)]
    for name in vars(whole).keys() - {"pixels"}:
        assert (np.concatenate([getattr(part, name) for part in parts]) == getattr(whole, name)).all()


@pytest.mark.parametrize("kind", ["box", "boxes", "freeform"])
def test_seeds_steps_and_slots_have_holes_of_their_own(kind: str) -> None:
    config = HolesConfig(kind=kind)
    assert same(drawn(config), drawn(config))
    masks = masks_of(drawn(config))
    for other in (drawn(config, seed=4), drawn(config, step=12)):
        assert (masks_of(other) != masks).any((1, 2)).mean() > 0.99
    # The holes of a batch differ in place and in area, as their masks are drawn one by one.
    assert len(np.unique(masks.reshape(len(masks), -1), axis=0)) > 0.99 * len(masks)
    assert len(np.unique(masks.sum((1, 2)))) > 40


def test_a_box_has_any_sides_in_range_anywhere_in_the_photo() -> None:
    boxes = drawn(HolesConfig(min_side=19, max_side=38), slots=range(20_000)).boxes[:, 0]
    for side in (2, 3):
        assert set(np.unique(boxes[:, side])) == set(range(19, 39))
    assert abs(np.corrcoef(boxes[:, 2], boxes[:, 3])[0, 1]) < 0.03
    for place, side in ((0, 2), (1, 3)):
        of_side_20 = boxes[boxes[:, side] == 20]
        assert set(np.unique(of_side_20[:, place])) == set(range(SIZE - 20 + 1))


def test_several_boxes_are_one_to_max_count_of_at_least_min_side() -> None:
    boxes = drawn(HolesConfig(kind="boxes", min_side=8, max_side=38, max_count=4)).boxes
    used = boxes[:, :, 2] > 0
    assert set(used.sum(1)) == {1, 2, 3, 4}
    assert boxes[used][:, 2:].min() == 8
    assert (boxes[~used] == 0).all()


def test_some_holes_of_several_boxes_are_in_separate_pieces() -> None:
    cv2 = pytest.importorskip("cv2")
    masks = masks_of(drawn(HolesConfig(kind="boxes", min_side=8, max_side=38)))
    pieces = [cv2.connectedComponents(mask.astype(np.uint8))[0] - 1 for mask in masks]
    assert {1, 2, 3} <= set(pieces)


def test_strokes_are_one_to_max_count_within_their_radii() -> None:
    config = HolesConfig(kind="freeform", max_count=3, stroke_radius=[1.5, 4.0])
    radius = drawn(config).strokes[:, :, 4]
    # Four capsules make a stroke.
    assert set((radius > 0).sum(1)) == {4, 8, 12}
    used = radius[radius > 0]
    assert 1.5 <= used.min() < 1.6
    assert 3.9 < used.max() <= 4.0


def test_a_centred_hole_is_the_middle_square() -> None:
    masks = masks_of(drawn(HolesConfig(kind="centre", max_side=38)))
    expected = np.zeros((SIZE, SIZE), bool)
    expected[13:51, 13:51] = True
    assert (masks == expected).all()


def test_a_patch_is_centred_on_its_hole_and_moved_only_where_the_photo_ends() -> None:
    holes = drawn(HolesConfig())
    left, top, width, height = holes.boxes[:, 0].T
    for place, start, side in ((0, left, width), (1, top, height)):
        centred = (2 * start + side - 40) // 2
        assert (holes.fake_patches[:, place] == np.clip(centred, 0, SIZE - 40)).all()


def test_a_hole_larger_than_its_patch_has_it_in_its_middle() -> None:
    # check_holes refuses this for training.
    holes = draw_holes(HolesConfig(kind="centre", max_side=50, patch=20), SIZE, seed=0, step=0, slots=range(1))
    assert holes.fake_patches.tolist() == [[22, 22]]


def test_real_patches_know_nothing_of_the_hole() -> None:
    config = HolesConfig()
    holes = drawn(config, slots=range(4000))
    for kind in KINDS:
        other = drawn(replace(config, kind=kind, max_side=20), slots=range(4000))
        assert (other.real_patches == holes.real_patches).all()
    for place in (0, 1):
        assert set(np.unique(holes.real_patches[:, place])) == set(range(SIZE - 40 + 1))
        correlation = np.corrcoef(holes.real_patches[:, place], holes.fake_patches[:, place])[0, 1]
        assert abs(correlation) < 0.06


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        ({}, 62, "data.size=62 is not a multiple of 4"),
        ({}, 0, "data.size=0 is not a multiple of 4"),
        ({"kind": "round"}, 64, "holes.kind=round is not known: choose one of box, boxes, freeform, centre"),
        ({"min_side": 39}, 64, "holes.min_side=39 must be at least 1 and at most holes.max_side=38"),
        ({"min_side": 0}, 64, "holes.min_side=0 must be at least 1"),
        ({"max_side": 65, "patch": 64}, 64, r"holes.max_side=65 is larger than the photo \(data.size=64\)"),
        ({"max_side": 41}, 64, r"holes.max_side=41 is larger than the local patch \(holes.patch=40\)"),
        ({"patch": 68}, 64, r"holes.patch=68 is larger than the photo \(data.size=64\)"),
        ({"kind": "boxes", "max_count": 0}, 64, "holes.max_count=0 is too small"),
        ({"kind": "freeform", "stroke_radius": [0.5, 2.0]}, 64, r"holes.stroke_radius=\[0.5, 2.0\] must be"),
        ({"kind": "freeform", "stroke_radius": [3.0, 2.0]}, 64, r"holes.stroke_radius=\[3.0, 2.0\] must be"),
        ({"kind": "freeform", "stroke_radius": [2.0]}, 64, r"holes.stroke_radius=\[2.0\] must be"),
        ({"kind": "freeform", "stroke_radius": [2.0, 19.0]}, 64, "radius 19.0 does not fit"),
    ],
)
def test_holes_that_cannot_be_are_refused_in_one_line(change: dict[str, object], size: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        check_holes(replace(HolesConfig(), **change), size)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)
