"""Random numbers as a pure function of (seed, purpose, step, slot); a run has no others.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is counter-based: its n-th
output is computed from a key and n alone. The seed and the purpose make the key, the step and the slot the
counter, so there is no state between draws, and they do not depend on how slots are split over ranks.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

WORDS_PER_COUNT = 4
"""64-bit words from one value of Philox's counter."""


def draws(*, seed: int, purpose: str, step: int, slots: range, words: int) -> NDArray[np.uint64]:
    """Random 64-bit words (len(slots), words) for consecutive slots; a purpose must always use the same ``words``."""
    if slots.step != 1:
        raise ValueError(f"slots must be consecutive, not {slots}")
    counts = -(-words // WORDS_PER_COUNT)
    bits = np.random.Philox(key=_key(seed, purpose), counter=_words(slots.start * counts, step, 0, 0))
    drawn = bits.random_raw(len(slots) * counts * WORDS_PER_COUNT)
    return drawn.reshape(len(slots), counts * WORDS_PER_COUNT)[:, :words]


def generator(*, seed: int, purpose: str, number: int) -> np.random.Generator:
    """An independent generator for item ``number`` of a purpose, such as an epoch's permutation."""
    # The number stands in the counter's third word: 2**128 outputs away from the next number's.
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=_words(0, 0, number, 0)))


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words to numbers in [0, 1), in steps of 2**-53."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(words: NDArray[np.uint64], low: ArrayLike, high: ArrayLike) -> NDArray[np.int64]:
    """Words to integers in [low, high], both ends included; the three broadcast against each other."""
    span = np.asarray(high) - np.asarray(low) + 1
    return np.asarray(low) + np.floor(uniform(words) * span).astype(np.int64)


@functools.lru_cache(maxsize=64)
def _key(seed: int, purpose: str) -> NDArray[np.uint64]:
    digest = hashlib.sha256(purpose.encode()).digest()
    return _words(seed % 2**64, int.from_bytes(digest[:8], "little"))


def _words(*values: int) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)
