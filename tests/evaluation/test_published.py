"""Published protocols: the masks are those of the published rules, and frozen."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from glci_dist.errors import UserError
from glci_dist.evaluation import mask_rules, published
from glci_dist.evaluation.baselines import mean_colour
from glci_dist.evaluation.mask_rules import draw_segment, scaled
from glci_dist.evaluation.published import PROTOCOLS, published_protocol
from tests.evaluation.measured import evaluated, noise_photos

FROZEN = {
    ("mmagic-box", 64): "64673cd2a3cc89227770afdfa94d42f21bdca09d750cce934f1c1d553c0944fc",
    ("mmagic-box", 256): "e21e18ff6f610ea3ae7a4d36e608168e24481840bbb79f6071cdc925e25add08",
    ("mmagic-irregular", 64): "1e33510b019b0c3a74812e1863b3c64448cebdf0211b7112aa75b15f4c4ca307",
    ("mmagic-irregular", 256): "b91c113532e563a78688e68aab953f36147ed4b1f4b814bf4284a74767bc718a",
    ("centre", 64): "705761206c1c6b159b03aa16d50d35559d51a0b3b19bf2f5456f9983fd5cd31b",
    ("centre", 256): "ec03f5da30dfb348442d78deeda75a23fe234c30cb5c6c62805d77ea2dd99fc2",
    ("irregular-1-10", 64): "e89862c4edf24b03cc1a36703b17ef0ac2271b035de43f8c6d19425236cacfd6",
    ("irregular-1-10", 256): "6615c5dd7dd52cc2ea34f0e0da00d20dd75d805fe1792a004d38a989fe47be3d",
    ("irregular-10-20", 64): "1d6a31e08bdf5da432047fb2e48d3b0ee0048f8e6faaf017fd24901a5c80a4dd",
    ("irregular-10-20", 256): "e417de7a7cd0aaccfff4f7e06dd69919bfb48cdb90d9c7668c13a9866a02fa44",
    ("irregular-20-30", 64): "1a5b133ac7c0bf326389ec0125178ec5de5bbbb538cba34c3ccbcf42c5d01528",
    ("irregular-20-30", 256): "047cc7a078e5c88ff64b0880976ce9454127e0777ef808bc591dd1832a48da67",
    ("irregular-30-40", 64): "7b04be9d677c2284e3e6e70d02f9b5789599d723e2cbaf4c14089e133720f1da",
    ("irregular-30-40", 256): "aaff057bf0d40d6b630d1235a34cd042cbee5490a2bf056ec62955f5e2a6eb4c",
    ("irregular-40-50", 64): "e5aa6d1d81388c9653b90335f31c093d7462cbb2016d7e7de7bd12ceb24b6030",
    ("irregular-40-50", 256): "14fafc90bf57c8079ad9803ec7aeaf8c940c6d953cded9e8dd6383972e63889f",
    ("irregular-50-60", 64): "f0f73ab56a05132971e0d56691ed14519697fa92d0ab86e63d6a2befc8484633",
    ("irregular-50-60", 256): "220ad2bb3cbe6aecdbffc150cc04c14db8adcd1ea597bf784e8aabb87620f6bc",
    ("lama-thin", 64): "ec42d4ebddb60c6bc7dd86ed828aa00e2e8c8393f80417bcb237bd930ff2484a",
    ("lama-thin", 256): "92c08b73e8fa9a308b189dac608feec3fa914a1ded7b96e28d998057feb5082e",
    ("lama-thin", 512): "378c49a201e0e1616fc20eaa033950ab1862c31681ade2e9b99f5ce96fc0d83d",
    ("lama-medium", 64): "37d60acd5a1453355224be1f1e7baaf96a2b384390cb506b9fe201f2e254238f",
    ("lama-medium", 256): "7315ccc5291b02c1a7bc62e8d8dd4cf099bc3f8d2bb5e21e795d26e7d073f42d",
    ("lama-medium", 512): "163d1409363be65dec60d18109c5f506a0000d986e5d90731a5ad079da462034",
    ("lama-thick", 64): "698b2efd12180ca8712fb6f046040ba159a2616c7d79bccda2a982723f113c95",
    ("lama-thick", 256): "dcb35faa66ada41616a53d8feaeb952fc11c1a5f35a9a1ea4ac21323ce90d0cc",
    ("lama-thick", 512): "90633ba996f3b55407ce2b21d1f64b2be7b41f2a8e3783919cb833dbeb491c6c",
}


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_frozen(name: str, size: int) -> None:
    """A change here makes every figure so far incomparable: it needs a new protocol."""
    assert published_protocol(name, size).digest(60) == FROZEN[name, size]


@pytest.mark.parametrize("name", ["lama-thin", "lama-medium", "lama-thick"])
def test_the_rules_for_512_px_are_frozen_too(name: str) -> None:
    assert published_protocol(name, 512).digest(30) == FROZEN[name, 512]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_hole_of_a_photo_depends_on_its_number_alone(name: str) -> None:
    protocol = published_protocol(name, 64)
    together, corners = protocol.masks(range(12)), protocol.patches(range(12))
    published._packed_mask.cache_clear()
    for part in (range(7, 12), range(3, 7), range(3)):
        assert torch.equal(protocol.masks(part), together[part.start : part.stop])
        assert torch.equal(protocol.patches(part), corners[part.start : part.stop])
    different = len({mask.numpy().tobytes() for mask in together})
    assert different == (1 if name == "centre" else 12)


@pytest.mark.parametrize("size", [32, 64, 160, 256])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_mask_has_a_hole_and_something_around_it(name: str, size: int) -> None:
    masks = published_protocol(name, size).masks(range(30))
    assert masks.shape == (30, 1, size, size)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.sum((1, 2, 3)).min() > 0
    assert masks.sum((1, 2, 3)).max() < size**2


def test_mmagics_boxes_have_its_sides_and_margins() -> None:
    masks = published_protocol("mmagic-box", 256).masks(range(2000))[:, 0].numpy().astype(np.uint8)
    boxes = np.array([cv2.boundingRect(mask) for mask in masks])
    corners, sides = boxes[:, :2], boxes[:, 2:]
    assert (sides.prod(1) == masks.sum((1, 2))).all()
    for axis in range(2):
        # A side of up to 128 px shrinks by 0 to 20; the right and the bottom margin are 1 px more than 20 at least.
        assert set(sides[:, axis]) == set(range(108, 129))
        assert corners[:, axis].min() in range(20, 23)
        assert set((corners + sides)[:, axis]) == set(range(148, 236))
    assert (sides[:, 0] != sides[:, 1]).mean() > 0.9


def test_the_centre_is_a_square_of_half_the_side_in_the_middle() -> None:
    for size in (64, 160, 256):
        expected = np.zeros((size, size))
        expected[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
        assert np.array_equal(published_protocol("centre", size).masks(range(1))[0, 0].numpy(), expected)


@pytest.mark.parametrize("size", [64, 160, 256])
@pytest.mark.parametrize("low", [1, 10, 20, 30, 40, 50])
def test_irregular_masks_lie_exactly_in_their_class(low: int, size: int) -> None:
    high = max(10, low + 10) if low > 1 else 10
    shares = published_protocol(f"irregular-{low}-{high}", size).masks(range(40)).mean((1, 2, 3), dtype=torch.float64)
    assert low / 100 < shares.min()
    assert shares.max() <= high / 100
    # They differ in area: a class is no single share.
    assert shares.max() - shares.min() > 0.03


Drawn = list[tuple[np.ndarray, list[tuple[list[int], list[int], int]]]]
"""Masks with their segments: start, end, width."""


@pytest.fixture
def segments(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], Drawn]:
    """The strokes that a protocol draws for its first photos, in refused masks too."""
    drawn: Drawn = []
    draw = mask_rules.draw_segment

    def recorded(mask: np.ndarray, start: list[int], end: list[int], width: int) -> None:
        if not drawn or mask is not drawn[-1][0]:
            drawn.append((mask, []))
        drawn[-1][1].append((start, end, width))
        draw(mask, start, end, width)

    def of(name: str, size: int, photos: int) -> Drawn:
        published._packed_mask.cache_clear()
        published_protocol(name, size).masks(range(photos))
        return drawn

    monkeypatch.setattr(mask_rules, "draw_segment", recorded)
    return of


@pytest.mark.parametrize(
    ("name", "size", "strokes", "widths", "longest"),
    [
        ("lama-thin", 256, (4, 51), (5, 14), 49),
        ("lama-medium", 256, (4, 6), (5, 54), 109),
        ("lama-thick", 256, (1, 6), (5, 104), 209),
        ("lama-thin", 512, (4, 71), (5, 24), 109),
        ("lama-medium", 512, (4, 11), (5, 104), 209),
        ("lama-thick", 512, (1, 6), (5, 254), 459),
        ("mmagic-irregular", 256, (4, 9), (10, 44), 127),
    ],
)
def test_strokes_have_the_published_numbers(
    segments: Callable[[str, int, int], Drawn],
    name: str,
    size: int,
    strokes: tuple[int, int],
    widths: tuple[int, int],
    longest: int,
) -> None:
    drawn = segments(name, size, 400)
    every = [segment for _, each in drawn for segment in each]
    used = [width for _, _, width in every]
    assert (min(used), max(used)) == widths
    # Each end is cut to whole pixels.
    assert longest - 2 <= max(np.hypot(*np.subtract(end, start)) for start, end, _ in every) <= longest + 1.5
    # A stroke goes on where its last segment ended. Drawing ends early once a mask will be refused for its area.
    counts = [1 + sum(before[1] != after[0] for before, after in itertools.pairwise(each)) for _, each in drawn]
    whole = [count for count, (mask, _) in zip(counts, drawn, strict=True) if mask.mean() <= 0.5]
    assert (min(whole), max(counts)) == strokes
    lowest, highest = min(min(end) for _, end, _ in every), max(max(end) for _, end, _ in every)
    if name == "mmagic-irregular":
        assert lowest < 0
        assert highest > size
    else:
        assert (lowest, highest) == (0, size)


def test_a_segment_that_leaves_the_photo_is_cut_by_it() -> None:
    for start, end in (([5, -40], [50, 30]), ([-30, 60], [20, 90]), ([70, 10], [90, 20]), ([-9, -9], [80, 80])):
        large = np.zeros((264, 264), np.uint8)
        cv2.line(large, (start[0] + 100, start[1] + 100), (end[0] + 100, end[1] + 100), 1, 11)
        mask = np.zeros((64, 64), np.uint8)
        draw_segment(mask, start, end, 11)
        assert np.array_equal(mask, large[100:164, 100:164])


def corners(mask: np.ndarray) -> int:
    """How many corners the hole's outline has: windows of 2 x 2 px with one or three in the hole."""
    held = cv2.boxFilter(np.pad(mask, 1), cv2.CV_32S, (2, 2), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return int(((held == 1) | (held == 3)).sum())


def test_lama_mixes_boxes_and_strokes_as_published() -> None:
    """Boxes have few corners, strokes round ends."""
    found = {}
    for name in ("lama-thin", "lama-medium", "lama-thick"):
        masks = published_protocol(name, 256).masks(range(2000))[:, 0].numpy().astype(np.uint8)
        assert masks.mean((1, 2)).max() <= 0.5
        found[name] = np.mean([corners(mask) <= 30 for mask in masks])
    # 0.3 of 1.3 are boxes; of the strokes, LaMa refuses more of thick masks: those that cover more than half.
    assert found["lama-thin"] == 0
    assert found["lama-medium"] == pytest.approx(0.3 / 1.3, abs=0.03)
    assert found["lama-thick"] == pytest.approx(0.35, abs=0.03)


def test_lamas_boxes_have_its_sides_and_margins() -> None:
    for name, sides, margin in (("lama-medium", (10, 50), 0), ("lama-thick", (30, 150), 10)):
        masks = published_protocol(name, 256).masks(range(2000))[:, 0].numpy().astype(np.uint8)
        boxes = np.array([cv2.boundingRect(mask) for mask in masks if corners(mask) == 4])
        assert len(boxes) > 50
        assert sides[0] <= boxes[:, 2:].min() <= sides[0] + 4
        assert sides[1] - 4 <= boxes[:, 2:].max() <= sides[1]
        assert boxes[:, :2].min() >= margin
        assert (boxes[:, :2] + boxes[:, 2:]).max() <= 256 - margin


def test_a_photo_has_the_same_hole_at_every_size() -> None:
    for name in ("mmagic-box", "lama-medium"):
        large = published_protocol(name, 256).masks(range(20))[:, 0]
        covered = large.reshape(20, 64, 4, 64, 4).mean((2, 4))
        assert torch.equal(published_protocol(name, 64).masks(range(20))[:, 0], (covered >= 0.5).float())


@pytest.mark.parametrize("size", [3, 5, 9, 16])
def test_scaling_takes_pixels_that_are_half_covered(size: int) -> None:
    mask = np.random.default_rng(size).integers(0, 2, (6, 6), dtype=np.uint8)
    # On a grid that both sizes divide.
    fine = mask.repeat(size, 0).repeat(size, 1).reshape(size, 6, size, 6).sum((1, 3))
    assert np.array_equal(scaled(mask, size), 2 * fine >= 36)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_square_holds_more_of_the_hole_than_the_neighbourhood(name: str) -> None:
    protocol = published_protocol(name, 32)
    masks, side = protocol.masks(range(8))[:, 0], protocol.patch
    assert side == 20
    for mask, (left, top) in zip(masks, protocol.patches(range(8)).tolist(), strict=True):
        held = mask.unfold(0, side, 1).unfold(1, side, 1).sum((2, 3))
        assert held[top, left] == held.max()


def test_the_neighbourhood_of_a_box_is_centred_on_it() -> None:
    protocol = published_protocol("mmagic-box", 256)
    for mask, corner in zip(protocol.masks(range(50))[:, 0], protocol.patches(range(50)).tolist(), strict=True):
        box = np.array(cv2.boundingRect(mask.numpy().astype(np.uint8)))
        centred = np.clip((2 * box[:2] + box[2:] - protocol.patch) / 2, 0, 256 - protocol.patch)
        assert np.abs(centred - corner).max() <= 0.5


def test_the_tables_last_line_says_for_which_size_a_protocol_was_published() -> None:
    grey = {"grey": mean_colour((0.5,) * 3)}
    result = evaluated(grey, noise_photos(2, 64), published_protocol("mmagic-box", 64), replicates=0)
    last = result.table().splitlines()[-1]
    assert last == (
        "2 photos of 64 px; protocol mmagic-box, seed 20170730, digest "
        f"{published_protocol('mmagic-box', 64).digest(2)[:12]}; published for 256 px; here 64"
    )
    assert published_protocol("lama-thin", 64).remark == "published for 256 and 512 px; here 64"
    assert published_protocol("lama-thin", 512).remark == published_protocol("mmagic-box", 256).remark == ""


def test_an_unknown_protocol_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"--protocol=lama .*mmagic-box, mmagic-irregular, centre, irregular-1-10"):
        published_protocol("lama", 64)


def test_photos_too_small_for_a_class_are_refused() -> None:
    with pytest.raises(UserError, match=r"finds no mask of its area on photos of 2 px"):
        published_protocol("irregular-1-10", 2).masks(range(1))
