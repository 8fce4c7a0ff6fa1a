"""How published evaluations draw their masks: each rule turns random words into the pixels of one hole.

A rule draws for photos of one size, ``published`` px, which its lengths are for; ``scaled`` makes the same hole of
another size.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from glci_dist.data.draws import integers, uniform

Words = NDArray[np.uint64]
Mask = NDArray[np.uint8]
"""(side, side), 1 in the hole."""
Range = tuple[int, int]
"""Both ends included. Published code excludes the upper end as a rule: its number is larger by one."""

_SEGMENTS = 5
"""Most segments of a stroke."""
_LEAST_ANGLE = 0.01
"""Radians; a direction is this plus a whole number."""


@dataclass(frozen=True)
class MaskRule(ABC):
    """Draws one hole. It keeps nothing from one call to the next."""

    published: int
    """Side of the photos that the rule was published for, px."""

    @property
    @abstractmethod
    def words(self) -> int:
        """Random words that a hole needs."""

    @abstractmethod
    def draw(self, words: Words, most: int) -> Mask:
        """A hole from ``self.words`` words: uint8 (published, published).

        A rule may stop once the hole has more than ``most`` px: the caller then refuses it in any case.
        """

    def _known(self) -> Mask:
        """A photo without a hole."""
        return np.zeros((self.published, self.published), np.uint8)


@dataclass(frozen=True)
class Centre(MaskRule):
    """The square of half the side in the middle."""

    words = 1

    def draw(self, words: Words, most: int) -> Mask:
        mask, quarter = self._known(), self.published // 4
        mask[quarter : 3 * quarter, quarter : 3 * quarter] = 1
        return mask


@dataclass(frozen=True)
class ShrunkBox(MaskRule):
    """A box anywhere inside a margin, whose left and top edges then move inwards, each by a draw of its own.

    The right and the bottom edge stay, so that a side shrinks by ``shrink`` px at most.
    """

    side: int
    shrink: int
    margin: int
    words = 4

    def draw(self, words: Words, most: int) -> Mask:
        mask = self._known()
        # The greatest possible corner is never drawn there, as the upper end is excluded.
        corner = integers(words[:2], self.margin, self.published - self.margin - self.side - 1)
        left, top = corner + integers(words[2:], 0, self.shrink)
        right, bottom = corner + self.side
        mask[top:bottom, left:right] = 1
        return mask


@dataclass(frozen=True)
class Boxes(MaskRule):
    """Some boxes, each anywhere inside a margin."""

    count: Range
    side: Range
    margin: int

    @property
    def words(self) -> int:
        return 1 + 4 * self.count[1]

    def draw(self, words: Words, most: int) -> Mask:
        mask, count = self._known(), int(integers(words[0], *self.count))
        each = words[1:].reshape(-1, 4)[:count]
        sides = integers(each[:, :2], *self.side)
        corners = integers(each[:, 2:], self.margin, self.published - self.margin - sides)
        for (left, top), (right, bottom) in zip(corners, corners + sides, strict=True):
            mask[top:bottom, left:right] = 1
        return mask


@dataclass(frozen=True)
class Strokes(MaskRule):
    """Some strokes of one to five straight segments, each with a length, a width and a direction of its own.

    A direction is 0.01 plus one of 0 to ``angles`` - 1, in radians; every second stroke, the first among them, has
    its directions' signs changed.
    """

    count: Range
    length: Range
    width: Range
    angles: int
    stays_inside: bool
    """Whether the ends are moved into the photo; otherwise a stroke can leave it."""
    from_x_axis: bool
    """Whether a direction is measured from the x axis; otherwise from the y axis."""

    @property
    def words(self) -> int:
        return 1 + self.count[1] * (3 + 3 * _SEGMENTS)

    def draw(self, words: Words, most: int) -> Mask:
        mask, count = self._known(), int(integers(words[0], *self.count))
        each = words[1:].reshape(-1, 3 + 3 * _SEGMENTS)[:count]
        starts = integers(each[:, :2], 0, self.published - 1).tolist()
        segments = integers(each[:, 2], 1, _SEGMENTS).tolist()
        directions = integers(each[:, 3::3], 0, self.angles - 1).tolist()
        lengths = integers(each[:, 4::3], *self.length).tolist()
        widths = integers(each[:, 5::3], *self.width).tolist()
        for stroke in range(count):
            point, sign = starts[stroke], -1 if stroke % 2 == 0 else 1
            for segment in range(segments[stroke]):
                angle = sign * (_LEAST_ANGLE + directions[stroke][segment])
                end = self._end(point, angle, lengths[stroke][segment])
                draw_segment(mask, point, end, widths[stroke][segment])
                point = end
            if cv2.countNonZero(mask) > most:
                break
        return mask

    def _end(self, start: list[int], angle: float, length: int) -> list[int]:
        """Where a segment from ``start`` (x, y) ends, cut to whole px."""
        across, down = math.sin(angle), math.cos(angle)
        if self.from_x_axis:
            across, down = down, across
        ends = [int(start[0] + length * across), int(start[1] + length * down)]
        return [min(max(end, 0), self.published) for end in ends] if self.stays_inside else ends


@dataclass(frozen=True)
class Mixture(MaskRule):
    """Strokes or, for ``box_share`` of the holes, boxes."""

    strokes: Strokes
    boxes: Boxes
    box_share: float

    @property
    def words(self) -> int:
        return 1 + self.strokes.words + self.boxes.words

    def draw(self, words: Words, most: int) -> Mask:
        of_strokes, of_boxes = np.split(words[1:], [self.strokes.words])
        if float(uniform(words[:1])[0]) < self.box_share:
            return self.boxes.draw(of_boxes, most)
        return self.strokes.draw(of_strokes, most)


def draw_segment(mask: Mask, start: Sequence[int], end: Sequence[int], width: int) -> None:
    """Add a straight segment with round ends between two points (x, y), which may lie outside the photo, to the mask.

    It is drawn whole and then cut to the photo: OpenCV's versions differ in lines that leave the picture.
    """
    left, right = min(start[0], end[0]) - width, max(start[0], end[0]) + width
    top, bottom = min(start[1], end[1]) - width, max(start[1], end[1]) + width
    segment = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.line(segment, (start[0] - left, start[1] - top), (end[0] - left, end[1] - top), 1, width)
    x, y = max(left, 0), max(top, 0)
    seen = segment[y - top : max(len(mask) - top, 0), x - left : max(len(mask) - left, 0)]
    mask[y : y + seen.shape[0], x : x + seen.shape[1]] |= seen


def scaled(mask: Mask, size: int) -> Mask:
    """The mask on a photo of ``size`` px: a pixel is in the hole if at least half of its area is."""
    if len(mask) == size:
        return mask
    overlaps = _overlaps(len(mask), size)
    # Sums of whole numbers, which float64 holds exactly: the same pixels on every machine.
    covered = overlaps @ mask.astype(np.float64) @ overlaps.T
    return (2 * covered >= len(mask) ** 2).astype(np.uint8)


@functools.cache
def _overlaps(before: int, after: int) -> NDArray[np.float64]:
    """How much of each of ``before`` equal parts of a line lies in each of ``after`` parts, (after, before).

    In units of 1 / (before * after) of the line; each row's sum is ``before``.
    """
    starts, others = np.arange(after)[:, None] * before, np.arange(before)[None] * after
    overlap = np.minimum(starts + before, others + after) - np.maximum(starts, others)
    return np.maximum(overlap, 0).astype(np.float64)
