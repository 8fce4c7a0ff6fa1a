"""Where the holes and the local patches lie: drawn on the CPU for each slot.

A kind of hole is a class that turns random words into boxes, strokes or pixels; what becomes of them on the training
device is in ``masks.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glci_dist import components
from glci_dist.config import HolesConfig
from glci_dist.data.draws import draws, integers
from glci_dist.data.hole_kinds import KINDS, HoleKind, Shapes
from glci_dist.errors import UserError, in_a_line

LEAST_RADIUS = 1.0
"""Of strokes, px: a disc as large holds the middle of a pixel wherever it lies, so no hole is ever empty."""


@dataclass(frozen=True, kw_only=True)
class Holes(Shapes):
    """The holes of n slots with their patches, in px; see ``Batch`` for what each number is."""

    fake_patches: NDArray[np.int32]
    """(n, 2)."""
    real_patches: NDArray[np.int32]
    """(n, 2)."""


class HoleDrawer:
    """Draws holes of the configured kind on photos of ``size`` px: a pure function of (seed, step, slot).

    The patch on the completed photo is centred on the hole's bounding box and moved into the photo; the patch on the
    real photo is anywhere, by a draw of its own. ``config`` has passed ``check_holes``.
    """

    def __init__(self, config: HolesConfig, size: int) -> None:
        self._config, self._size = config, size
        self._kind: HoleKind | None = None

    def draw(self, *, seed: int, step: int, slots: range) -> Holes:
        """The holes and patches of some slots at a step."""
        if self._kind is None:
            # By each process for itself, so that no kind need be pickled.
            self._kind = hole_kind(self._config, self._size)
        purpose = f"holes.{self._config.custom.get(components.TARGET, self._config.kind)}"
        words = draws(seed=seed, purpose=purpose, step=step, slots=slots, words=self._kind.words)
        shapes, patch = self._kind.draw(words, self._size), self._config.patch
        bounds = _bounds(shapes)
        if self._config.custom:
            _check_bounds(bounds, patch, self._size)
        centred = (bounds[:, :2] + bounds[:, 2:] - patch) // 2
        real = draws(seed=seed, purpose="real patches", step=step, slots=slots, words=2)
        return Holes(
            shapes.boxes,
            shapes.strokes,
            shapes.pixels,
            fake_patches=np.clip(centred, 0, self._size - patch).astype(np.int32),
            real_patches=integers(real, 0, self._size - patch).astype(np.int32),
        )


def draw_holes(config: HolesConfig, size: int, *, seed: int, step: int, slots: range) -> Holes:
    """Holes and patches on photos of ``size`` px, as ``HoleDrawer`` draws them."""
    return HoleDrawer(config, size).draw(seed=seed, step=step, slots=slots)


def hole_kind(config: HolesConfig, size: int) -> HoleKind:
    """The configured kind. Raises ``UserError`` for one of the user's that cannot be made."""
    if config.custom:
        return components.one("holes.custom", config.custom).make(HoleKind, size=size, patch=config.patch)
    return KINDS[config.kind](config)


def check_holes(config: HolesConfig, size: int) -> None:
    """Raise ``UserError`` for the first rule that the holes or the photo's ``size`` break."""
    low, high = config.min_side, config.max_side
    if size < 4 or size % 4:
        raise UserError(f"data.size={size} is not a multiple of 4: the completion network halves the photo twice")
    if config.kind not in KINDS:
        raise UserError(f"holes.kind={config.kind} is not known: choose one of {', '.join(KINDS)}")
    if config.custom:
        _check_patch(config, size)
        _check_custom(hole_kind(config, size), config.patch, size)
        return
    if not 1 <= low <= high:
        raise UserError(f"holes.min_side={low} must be at least 1 and at most holes.max_side={high}")
    if high > size:
        raise UserError(f"holes.max_side={high} is larger than the photo (data.size={size}): make it smaller")
    _check_patch(config, size)
    if high > config.patch:
        raise UserError(
            f"holes.max_side={high} is larger than the local patch (holes.patch={config.patch}): "
            "the patch must contain the hole"
        )
    if config.max_count < 1:
        raise UserError(f"holes.max_count={config.max_count} is too small: it must be at least 1")
    if config.kind == "freeform":
        _check_radius(config)


def _check_patch(config: HolesConfig, size: int) -> None:
    if config.patch > size:
        raise UserError(f"holes.patch={config.patch} is larger than the photo (data.size={size}): make it smaller")


def _check_radius(config: HolesConfig) -> None:
    radius = config.stroke_radius
    if len(radius) != 2 or not LEAST_RADIUS <= radius[0] <= radius[1]:
        raise UserError(f"holes.stroke_radius={list(radius)} must be [least, greatest] with 1 <= least <= greatest")
    if 2 * radius[1] >= config.max_side:
        raise UserError(
            f"holes.stroke_radius={list(radius)}: a stroke of radius {radius[1]} does not fit in "
            f"holes.max_side={config.max_side}; make it less than half of that"
        )


def _check_custom(kind: HoleKind, patch: int, size: int, slots: int = 64) -> None:
    """Raise ``UserError`` where a kind of the user's draws holes that are empty, too large or not its slot's alone."""
    if not isinstance(getattr(kind, "words", None), int) or kind.words < 1:
        raise UserError("holes.custom needs words, the number of random words that a hole takes: at least 1")
    words = draws(seed=0, purpose="check of a hole kind", step=0, slots=range(slots), words=kind.words)
    try:
        shapes, alone, again = kind.draw(words, size), kind.draw(words[1:2], size), kind.draw(words, size)
        bounds, of_one = _bounds(shapes), _bounds(alone)
    except Exception as error:  # the user's class can raise anything
        raise UserError(f"holes.custom fails: {in_a_line(error)}") from error
    if len(bounds) != slots or not _is_typed(shapes, slots, size):
        raise UserError(
            f"holes.custom must draw a hole for each of the {slots} slots: boxes int32 (n, M, 4), strokes float32 "
            f"(n, K, 5), pixels uint8 (n, {size}, {size}) of 0 and 1, or None"
        )
    if not _same(shapes, again, slice(None)) or not _same(shapes, alone, slice(1, 2)) or (bounds[1:2] != of_one).any():
        raise UserError("holes.custom: a slot's hole must be a function of its own words alone: draw nothing else")
    _check_bounds(bounds, patch, size)


def _check_bounds(bounds: NDArray[np.int64], patch: int, size: int) -> None:
    """Raise ``UserError`` for a hole of the user's that is empty, or does not fit."""
    corners, ends = bounds[:, :2], bounds[:, 2:]
    if (ends <= corners).any():
        raise UserError("holes.custom draws empty holes: every hole needs a pixel")
    if (corners < 0).any() or (ends > size).any() or (ends - corners > patch).any():
        raise UserError(
            f"holes.custom draws holes that do not fit the photo or the local patch (holes.patch={patch}): the patch "
            "must contain the hole"
        )


def _is_typed(shapes: Shapes, slots: int, size: int) -> bool:
    pixels = shapes.pixels
    return (
        (shapes.boxes.dtype, shapes.boxes.shape[::2]) == (np.int32, (slots, 4))
        and (shapes.strokes.dtype, shapes.strokes.shape[::2]) == (np.float32, (slots, 5))
        and (pixels is None or (pixels.dtype == np.uint8 and pixels.shape == (slots, size, size) and pixels.max() <= 1))
    )


def _same(one: Shapes, other: Shapes, slots: slice) -> bool:
    empty = np.zeros((0, 0, 0), np.uint8)
    pixels = [empty if each.pixels is None else each.pixels for each in (one, other)]
    pairs: list[tuple[Any, Any]] = [(one.boxes, other.boxes), (one.strokes, other.strokes), (pixels[0], pixels[1])]
    return all(np.array_equal(a[slots], b) for a, b in pairs)


def _bounds(shapes: Shapes) -> NDArray[np.int64]:
    """Left, top, right, bottom (n, 4) of each hole; right and bottom are the first px outside."""
    boxes, strokes = shapes.boxes, shapes.strokes
    corners, sides, radius = boxes[:, :, :2], boxes[:, :, 2:], strokes[:, :, 4:]
    starts, ends = strokes[:, :, :2], strokes[:, :, 2:4]
    # A pixel belongs to a stroke by its middle; the margin is for the rounding of fp32, here and on the device.
    reach = radius - 0.5 + 1e-3
    low: list[Any] = [corners, np.ceil(np.minimum(starts, ends) - reach - 1)]
    high: list[Any] = [corners + sides, np.floor(np.maximum(starts, ends) + reach) + 1]
    used: list[Any] = [sides[:, :, :1], radius]
    if shapes.pixels is not None:
        first, last, there = _bounds_of_pixels(shapes.pixels)
        low, high, used = [*low, first], [*high, last], [*used, there]
    is_used = np.concatenate(used, 1) > 0
    left_top = np.where(is_used, np.concatenate(low, 1), np.inf).min(1)
    right_bottom = np.where(is_used, np.concatenate(high, 1), -np.inf).max(1)
    empty = ~is_used.any(1).repeat(2).reshape(-1, 2).astype(bool)
    left_top, right_bottom = np.where(empty, 0, left_top), np.where(empty, 0, right_bottom)
    return np.concatenate([left_top, right_bottom], 1).astype(np.int64)


def _bounds_of_pixels(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Left, top and first px outside, (n, 1, 2) each, and whether there is a pixel, (n, 1, 1)."""
    size = pixels.shape[1]
    columns, rows = np.asarray(pixels.any(1)), np.asarray(pixels.any(2))
    first = np.stack([columns.argmax(1), rows.argmax(1)], 1)
    last = np.stack([size - columns[:, ::-1].argmax(1), size - rows[:, ::-1].argmax(1)], 1)
    return first.reshape(-1, 1, 2), last.reshape(-1, 1, 2), pixels.any((1, 2)).astype(np.int64).reshape(-1, 1, 1)
