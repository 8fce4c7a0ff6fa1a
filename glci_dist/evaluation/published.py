"""Published evaluation protocols: other people's masks, drawn anew by their published rules.

The rules' numbers are facts of the sources named at each; the masks themselves differ from the published ones, which
were drawn with other random numbers. docs/evaluation.md says what each can be compared with.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from glci_dist.data.draws import draws
from glci_dist.errors import UserError
from glci_dist.evaluation.mask_rules import Boxes, Centre, Mask, MaskRule, Mixture, ShrunkBox, Strokes, scaled
from glci_dist.evaluation.protocol import SEED, HoleProtocol


@dataclass(frozen=True)
class _Masks:
    """Masks of a rule."""

    rule: MaskRule
    area: tuple[float, float] = (0.0, 0.999)
    """A mask is drawn again until its share of the photo is above the first and at most the second."""


_PCONV = Strokes(256, count=(4, 9), length=(20, 127), width=(10, 44), angles=6, stays_inside=False, from_x_axis=True)
"""mmagic's ``random_irregular_mask`` with the numbers of its configs/partial_conv."""


def _lama_strokes(published: int, *, count: tuple[int, int], width: int, length: int) -> Strokes:
    """LaMa's strokes (saicinpainting, training/data/masks.py) by the numbers of its configs/data_gen.

    Its generator draws up to one stroke more than ``max_times``, adds 10 to lengths from 0 to ``max_len`` - 1 and 5
    to widths from 0 to ``max_width`` - 1.
    """
    return Strokes(
        published,
        count=(count[0], count[1] + 1),
        length=(10, 9 + length),
        width=(5, 4 + width),
        angles=4,
        stays_inside=True,
        from_x_axis=False,
    )


def _lama(strokes: Strokes, boxes: Boxes | None = None) -> _Masks:
    """LaMa's masks: strokes with weight 1 and boxes with weight 0.3; at most half of the photo is hole."""
    if boxes is None:
        return _Masks(strokes, (0.0, 0.5))
    return _Masks(Mixture(strokes.published, strokes, boxes, box_share=0.3 / 1.3), (0.0, 0.5))


_PROTOCOLS: Mapping[str, tuple[_Masks, ...]] = {
    # mmagic (once mmediting): random_bbox with the numbers of its configs/global_local. It shrinks a side by up to
    # half of max_bbox_delta, 40.
    "mmagic-box": (_Masks(ShrunkBox(256, side=128, shrink=20, margin=20)),),
    "mmagic-irregular": (_Masks(_PCONV, (0.15, 0.65)),),
    "centre": (_Masks(Centre(256)),),
    # Liu et al., ECCV 2018: the classes of their test masks. The strokes are not theirs.
    **{
        f"irregular-{low}-{high}": (_Masks(_PCONV, (low / 100, high / 100)),)
        for low, high in ((1, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, 60))
    },
    # Suvorov et al., WACV 2022: at 256 px for CelebA-HQ, at 512 px for Places.
    "lama-thin": (
        _lama(_lama_strokes(256, count=(4, 50), width=10, length=40)),
        _lama(_lama_strokes(512, count=(4, 70), width=20, length=100)),
    ),
    "lama-medium": (
        _lama(
            _lama_strokes(256, count=(4, 5), width=50, length=100),
            Boxes(256, count=(1, 5), side=(10, 50), margin=0),
        ),
        _lama(
            _lama_strokes(512, count=(4, 10), width=100, length=200),
            Boxes(512, count=(1, 5), side=(30, 150), margin=0),
        ),
    ),
    "lama-thick": (
        _lama(
            _lama_strokes(256, count=(1, 5), width=100, length=200),
            Boxes(256, count=(1, 3), side=(30, 150), margin=10),
        ),
        _lama(
            _lama_strokes(512, count=(1, 5), width=250, length=450),
            Boxes(512, count=(1, 4), side=(30, 300), margin=10),
        ),
    ),
}
PROTOCOLS = tuple(_PROTOCOLS)
"""Names of the published protocols."""

_ATTEMPTS, _AT_ONCE = 20_000, 16
"""Most attempts for a mask of the right area; the rarest class takes about 200."""
_CACHED = 2048
"""Masks kept: they are asked for by batch, twice, and once more for the digest."""


@dataclass(frozen=True)
class PublishedProtocol(HoleProtocol):
    """Masks by a published rule."""

    published_px: tuple[int, ...]
    """Sizes of the photos that it was published for: the largest that is not larger than ``size`` is drawn, or else
    the smallest, and scaled to ``size``."""

    @property
    def patch(self) -> int:
        return 5 * self.size // 8

    @property
    def title(self) -> str:
        return f"protocol {self.name}"

    @property
    def remark(self) -> str:
        if self.size in self.published_px:
            return ""
        return f"published for {' and '.join(map(str, self.published_px))} px; here {self.size}"

    def masks(self, numbers: range) -> Tensor:
        return torch.from_numpy(np.stack([self._mask(number) for number in numbers])[:, None]).float()

    def patches(self, numbers: range) -> Tensor:
        corners = [_fullest_square(self._mask(number), self.patch) for number in numbers]
        return torch.tensor(corners, dtype=torch.int32)

    def digest(self, photos: int) -> str:
        """Sha256 over the masks' pixels, 8 in a byte, row by row."""
        found = hashlib.sha256()
        for number in range(photos):
            found.update(_packed_mask(self.name, self.size, self.seed, number))
        return found.hexdigest()

    def _mask(self, number: int) -> Mask:
        packed = np.frombuffer(_packed_mask(self.name, self.size, self.seed, number), np.uint8)
        return np.unpackbits(packed, count=self.size**2).reshape(self.size, self.size)


def published_protocol(name: str, size: int) -> PublishedProtocol:
    """The published protocol ``name`` on photos of ``size`` px; raises UserError for another name."""
    if name not in _PROTOCOLS:
        raise UserError(f"--protocol={name} is not known: choose among {', '.join(PROTOCOLS)}")
    return PublishedProtocol(name, SEED, size, tuple(each.rule.published for each in _PROTOCOLS[name]))


@functools.lru_cache(maxsize=_CACHED)
def _packed_mask(name: str, size: int, seed: int, number: int) -> bytes:
    """The mask of photo ``number``, 8 pixels in a byte: the first of its draws that has the right area.

    Raises UserError where there is none, as on photos of a few px.
    """
    smallest, *others = _PROTOCOLS[name]
    chosen = next((each for each in reversed(others) if each.rule.published <= size), smallest)
    rule, (low, high) = chosen.rule, chosen.area
    # The photo's number is the draw's step, the attempt its slot.
    purpose, most = f"published masks {name} {rule.published}", int(high * rule.published**2)
    for start in range(0, _ATTEMPTS, _AT_ONCE):
        attempts = range(start, start + _AT_ONCE)
        for words in draws(seed=seed, purpose=purpose, step=number, slots=attempts, words=rule.words):
            drawn = rule.draw(words, most)
            # Twice, as scaling changes the area a little.
            if low < _area(drawn) <= high and low < _area(mask := scaled(drawn, size)) <= high:
                return np.packbits(mask).tobytes()
    raise UserError(f"--protocol={name} finds no mask of its area on photos of {size} px: they are too small for it")


def _area(mask: Mask) -> float:
    """The share of the photo that is hole."""
    return cv2.countNonZero(mask) / mask.size


def _fullest_square(mask: Mask, side: int) -> tuple[int, int]:
    """Left, top of the square that holds most of the hole; of several the nearest to the hole's middle.

    A hole that fits into the square is thus as near to its middle as the photo's edges allow.
    """
    held = cv2.boxFilter(mask, cv2.CV_32S, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    room = len(mask) - side + 1
    held = held[:room, :room]
    left, top, width, height = cv2.boundingRect(mask)
    rows, columns = np.nonzero(held == held.max())
    distance = (2 * columns + side - 2 * left - width) ** 2 + (2 * rows + side - 2 * top - height) ** 2
    nearest = int(np.argmin(distance))
    return int(columns[nearest]), int(rows[nearest])
