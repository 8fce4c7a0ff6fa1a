"""Kinds of holes: each turns a slot's random words into boxes, strokes or pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glci_dist.config import HolesConfig
from glci_dist.data.draws import integers, uniform

SEGMENTS = 4
"""Capsules in a free-form stroke."""

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Shapes:
    """What makes up the holes of n slots, in px; a pixel that any of it covers lies in the hole."""

    boxes: NDArray[np.int32]
    """int32 (n, M, 4): left, top, width, height; width 0: unused."""
    strokes: NDArray[np.float32]
    """float32 (n, K, 5): x0, y0, x1, y1, radius of each capsule; radius 0: unused."""
    pixels: NDArray[np.uint8] | None = None
    """uint8 (n, size, size), 1 in the hole; None where boxes and strokes say all."""

    @classmethod
    def of_boxes(cls, boxes: NDArray[np.int32]) -> Shapes:
        """Boxes (n, M, 4) alone."""
        return cls(boxes, np.zeros((len(boxes), 0, 5), np.float32))

    @classmethod
    def of_pixels(cls, pixels: NDArray[np.uint8]) -> Shapes:
        """Pixels (n, size, size) alone."""
        count = len(pixels)
        return cls(np.zeros((count, 0, 4), np.int32), np.zeros((count, 0, 5), np.float32), pixels)


class HoleKind:
    """Base of a kind of hole. It keeps nothing from one call to the next."""

    words: int
    """Random words that a slot's hole needs."""

    def draw(self, words: Words, size: int) -> Shapes:
        """The holes of n slots on photos of ``size`` px, from their words, uint64 (n, ``self.words``)."""
        raise NotImplementedError("define draw(words, size)")


class Box(HoleKind):
    """One rectangle, its width and height uniform in [min_side, max_side], anywhere in the photo (GLCIC, section
    3.4).
    """

    words = 8

    def __init__(self, config: HolesConfig) -> None:
        self._low, self._high = config.min_side, config.max_side

    def draw(self, words: Words, size: int) -> Shapes:
        sides = integers(words[:, :2], self._low, self._high)
        corners = integers(words[:, 2:4], 0, size - sides)
        return Shapes.of_boxes(np.concatenate([corners, sides], 1).astype(np.int32)[:, None])


class Centre(HoleKind):
    """A square of max_side in the middle."""

    words = 4

    def __init__(self, config: HolesConfig) -> None:
        self._side = config.max_side

    def draw(self, words: Words, size: int) -> Shapes:
        corner = (size - self._side) // 2
        box = np.array([corner, corner, self._side, self._side], dtype=np.int32)
        return Shapes.of_boxes(np.tile(box, (len(words), 1, 1)))


class _InRegion(HoleKind):
    """1 to max_count parts inside a square of max_side that lies anywhere."""

    _words_a_part: int

    def __init__(self, config: HolesConfig) -> None:
        self._config = config
        self.words = 4 + self._words_a_part * config.max_count

    def _region(self, words: Words, size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], Words]:
        """Corner (n, 2) of the square, which parts are used (n, max_count), the other words."""
        corner = integers(words[:, :2], 0, size - self._config.max_side)
        count = integers(words[:, 2], 1, self._config.max_count)
        return corner, np.arange(self._config.max_count) < count[:, None], words[:, 4:]


class Boxes(_InRegion):
    """Rectangles of sides from min_side to two thirds of max_side (or min_side, where that is more), so that several
    can stand apart.
    """

    _words_a_part = 4

    def draw(self, words: Words, size: int) -> Shapes:
        config = self._config
        region, used, each = self._region(words, size)
        each = each.reshape(len(words), config.max_count, 4)
        sides = integers(each[:, :, :2], config.min_side, max(config.min_side, 2 * config.max_side // 3))
        corners = region[:, None] + integers(each[:, :, 2:], 0, config.max_side - sides)
        boxes = np.concatenate([corners, sides], 2).astype(np.int32)
        return Shapes.of_boxes(np.where(used[:, :, None], boxes, 0).astype(np.int32))


class Freeform(_InRegion):
    """Strokes, each a chain of capsules that turns at random."""

    _words_a_part = 4 + 2 * SEGMENTS
    """Radius, start (x, y), first direction; then a turn and a length for each capsule."""

    def draw(self, words: Words, size: int) -> Shapes:
        config = self._config
        region, used, each = self._region(words, size)
        shares = uniform(each).reshape(len(words), config.max_count, self._words_a_part)
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
        return Shapes(np.zeros((len(words), 1, 4), np.int32), strokes.reshape(len(words), -1, 5).astype(np.float32))


KINDS: Mapping[str, Callable[[HolesConfig], HoleKind]] = {
    "box": Box,
    "boxes": Boxes,
    "freeform": Freeform,
    "centre": Centre,
}
"""By their names in the configuration."""
