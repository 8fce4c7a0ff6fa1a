"""Where the holes and the local patches lie: drawn on the CPU as a few numbers for each slot.

What becomes of them on the training device is in ``masks.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glci_dist.config import HolesConfig
from glci_dist.data.draws import draws, integers, uniform
from glci_dist.errors import UserError

SEGMENTS = 4
"""Capsules in a free-form stroke."""

Words = NDArray[np.uint64]
Boxes = NDArray[np.int32]
Strokes = NDArray[np.float32]


@dataclass(frozen=True)
class Holes:
    """The holes and patches of n slots, in px; see ``Batch`` for what each number is."""

    boxes: Boxes
    """int32 (n, M, 4)."""
    strokes: Strokes
    """float32 (n, K, 5)."""
    fake_patches: NDArray[np.int32]
    """int32 (n, 2)."""
    real_patches: NDArray[np.int32]
    """int32 (n, 2)."""


def check_holes(config: HolesConfig, size: int) -> None:
    """Raise ``UserError`` for the first rule that the holes or the photo's ``size`` break."""
    low, high = config.min_side, config.max_side
    if size < 4 or size % 4:
        raise UserError(f"data.size={size} is not a multiple of 4: the completion network halves the photo twice")
    if config.kind not in _KINDS:
        raise UserError(f"holes.kind={config.kind} is not known: choose one of {', '.join(_KINDS)}")
    if not 1 <= low <= high:
        raise UserError(f"holes.min_side={low} must be at least 1 and at most holes.max_side={high}")
    if high > size:
        raise UserError(f"holes.max_side={high} is larger than the photo (data.size={size}): make it smaller")
    if config.patch > size:
        raise UserError(f"holes.patch={config.patch} is larger than the photo (data.size={size}): make it smaller")
    if high > config.patch:
        raise UserError(
            f"holes.max_side={high} is larger than the local patch (holes.patch={config.patch}): "
            "the patch must contain the hole"
        )
    if config.max_count < 1:
        raise UserError(f"holes.max_count={config.max_count} is too small: it must be at least 1")
    if config.kind == "freeform":
        _check_radius(config)


def draw_holes(config: HolesConfig, size: int, *, seed: int, step: int, slots: range) -> Holes:
    """Holes and patches on photos of ``size`` px: a pure function of (seed, step, slot).

    ``box``: one rectangle, its width and height uniform in [min_side, max_side], anywhere in the photo
    (GLCIC, section 3.4). ``boxes``: 1 to max_count rectangles inside a square of max_side that lies anywhere;
    sides from min_side to two thirds of max_side (or min_side, where that is more), so that several can stand
    apart. ``freeform``: 1 to max_count strokes, each a chain of capsules that turns at random inside such a
    square. ``centre``: a square of max_side in the middle.

    The patch on the completed photo is centred on the hole's bounding box and moved into the photo; the patch
    on the real photo is anywhere, by a draw of its own. ``config`` has passed ``check_holes``.
    """
    words = draws(
        seed=seed,
        purpose=f"holes.{config.kind}",
        step=step,
        slots=slots,
        words=_words_needed(config),
    )
    boxes, strokes = _KINDS[config.kind](config, size, words)
    real = draws(seed=seed, purpose="real patches", step=step, slots=slots, words=2)
    return Holes(
        boxes=boxes,
        strokes=strokes,
        fake_patches=_patches_around(_bounds(boxes, strokes), config.patch, size),
        real_patches=integers(real, 0, size - config.patch).astype(np.int32),
    )


def _check_radius(config: HolesConfig) -> None:
    radius = config.stroke_radius
    # A disc of radius 1 holds the middle of a pixel wherever it lies, so no hole is ever empty.
    if len(radius) != 2 or not 1.0 <= radius[0] <= radius[1]:
        raise UserError(f"holes.stroke_radius={list(radius)} must be [least, greatest] with 1 <= least <= greatest")
    if 2 * radius[1] >= config.max_side:
        raise UserError(
            f"holes.stroke_radius={list(radius)}: a stroke of radius {radius[1]} does not fit in "
            f"holes.max_side={config.max_side}; make it less than half of that"
        )


def _words_needed(config: HolesConfig) -> int:
    each = {
        "box": 4,
        "centre": 0,
        "boxes": 4 * config.max_count,
        "freeform": _STROKE_WORDS * config.max_count,
    }
    return each[config.kind] + 4


def _box(config: HolesConfig, size: int, words: Words) -> tuple[Boxes, Strokes]:
    sides = integers(words[:, :2], config.min_side, config.max_side)
    corners = integers(words[:, 2:4], 0, size - sides)
    return np.concatenate([corners, sides], 1).astype(np.int32)[:, None], _no_strokes(words)


def _centre(config: HolesConfig, size: int, words: Words) -> tuple[Boxes, Strokes]:
    corner, side = (size - config.max_side) // 2, config.max_side
    box = np.array([corner, corner, side, side], dtype=np.int32)
    return np.tile(box, (len(words), 1, 1)), _no_strokes(words)


def _boxes(config: HolesConfig, size: int, words: Words) -> tuple[Boxes, Strokes]:
    region, used, each = _region(config, size, words)
    each = each.reshape(len(words), config.max_count, 4)
    sides = integers(each[:, :, :2], config.min_side, max(config.min_side, 2 * config.max_side // 3))
    corners = region[:, None] + integers(each[:, :, 2:], 0, config.max_side - sides)
    boxes = np.concatenate([corners, sides], 2).astype(np.int32)
    return np.where(used[:, :, None], boxes, 0).astype(np.int32), _no_strokes(words)


_STROKE_WORDS = 4 + 2 * SEGMENTS
"""Radius, start (x, y), first direction; then a turn and a length for each capsule."""


def _freeform(config: HolesConfig, size: int, words: Words) -> tuple[Boxes, Strokes]:
    region, used, each = _region(config, size, words)
    shares = uniform(each).reshape(len(words), config.max_count, _STROKE_WORDS)
    thin, thick = config.stroke_radius
    radius = thin + (thick - thin) * shares[:, :, 0]
    least = region[:, None] + radius[:, :, None]
    greatest = region[:, None] + config.max_side - radius[:, :, None]
    point = least + (greatest - least) * shares[:, :, 1:3]
    angle = 2 * np.pi * shares[:, :, 3]
    capsules = []
    for segment in range(SEGMENTS):
        turn, length = shares[:, :, 4 + 2 * segment], shares[:, :, 5 + 2 * segment]
        angle = angle + np.pi * (turn - 0.5)
        # Between an eighth and a half of the region: short enough to bend, long enough to lead somewhere.
        stride = config.max_side * (0.125 + 0.375 * length)
        step = np.stack([np.cos(angle), np.sin(angle)], 2) * stride[:, :, None]
        following = np.clip(point + step, least, greatest)
        capsules.append(np.concatenate([point, following, radius[:, :, None]], 2))
        point = following
    strokes = np.where(used[:, :, None, None], np.stack(capsules, 2), 0.0)
    return np.zeros((len(words), 1, 4), np.int32), strokes.reshape(len(words), -1, 5).astype(np.float32)


def _region(config: HolesConfig, size: int, words: Words) -> tuple[NDArray[np.int64], NDArray[np.bool_], Words]:
    """Corner (n, 2) of the square that holds all parts, which parts are used (n, max_count), other words."""
    corner = integers(words[:, :2], 0, size - config.max_side)
    count = integers(words[:, 2], 1, config.max_count)
    return corner, np.arange(config.max_count) < count[:, None], words[:, 4:]


def _no_strokes(words: Words) -> Strokes:
    return np.zeros((len(words), 0, 5), np.float32)


def _bounds(boxes: Boxes, strokes: Strokes) -> NDArray[np.int64]:
    """Left, top, right, bottom (n, 4) of each hole; right and bottom are the first px outside."""
    corners, sides, radius = boxes[:, :, :2], boxes[:, :, 2:], strokes[:, :, 4:]
    starts, ends = strokes[:, :, :2], strokes[:, :, 2:4]
    # A pixel belongs to a stroke by its middle; the margin is for the rounding of fp32, here and on the
    # device.
    reach = radius - 0.5 + 1e-3
    low = np.concatenate([corners, np.ceil(np.minimum(starts, ends) - reach - 1)], 1)
    high = np.concatenate([corners + sides, np.floor(np.maximum(starts, ends) + reach) + 1], 1)
    used = np.concatenate([sides[:, :, :1], radius], 1) > 0
    left_top = np.where(used, low, np.inf).min(1)
    right_bottom = np.where(used, high, -np.inf).max(1)
    return np.concatenate([left_top, right_bottom], 1).astype(np.int64)


def _patches_around(bounds: NDArray[np.int64], patch: int, size: int) -> NDArray[np.int32]:
    centred = (bounds[:, :2] + bounds[:, 2:] - patch) // 2
    return np.clip(centred, 0, size - patch).astype(np.int32)


_KINDS = {"box": _box, "boxes": _boxes, "freeform": _freeform, "centre": _centre}
