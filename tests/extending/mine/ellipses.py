"""A kind of hole that is neither box nor stroke: an ellipse at any angle."""

import numpy as np
from numpy.typing import NDArray

from glci_dist.extensions import HoleKind, Shapes, uniform


class Ellipse(HoleKind):
    """Half axes of ``least`` to ``greatest`` px, anywhere in the photo."""

    words = 5

    def __init__(self, *, patch: int, least: float = 4.0, greatest: float = 8.0) -> None:
        if not 1 <= least <= greatest <= patch / 2 - 1:
            raise ValueError(f"least={least}, greatest={greatest} must be 1 <= least <= greatest <= {patch / 2 - 1}")
        self._least, self._greatest = least, greatest

    def draw(self, words: NDArray[np.uint64], size: int) -> Shapes:
        shares = uniform(words)[:, :, None, None]
        a, b = (self._least + (self._greatest - self._least) * shares[:, place] for place in (0, 1))
        angle = np.pi * shares[:, 2]
        x0, y0 = (self._greatest + (size - 2 * self._greatest) * shares[:, place] for place in (3, 4))
        middles = np.arange(size) + 0.5
        x, y = middles[None, None, :] - x0, middles[None, :, None] - y0
        along, beside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        return Shapes.of_pixels(((along / a) ** 2 + (beside / b) ** 2 <= 1).astype(np.uint8))
