"""Confidence intervals by resampling the photos (Efron, "Bootstrap methods", 1979)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glci_dist.data.draws import generator

_SEED = 20171101
_SHARE = 0.95


def resamples(photos: int, replicates: int) -> NDArray[np.int64]:
    """How often each photo is drawn in each resample, ``(replicates, photos)``.

    The same for every caller, so that the ratio of two methods can be computed per resample.
    """
    random = generator(seed=_SEED, purpose="bootstrap", number=photos)
    return random.multinomial(photos, np.full(photos, 1 / photos), size=replicates)


def interval(values: NDArray[np.float64], estimate: float) -> tuple[float, float]:
    """The 95% interval around ``estimate`` from its values over resamples.

    Percentiles of the deviations from the resamples' mean: a Frechet distance grows with every photo that a resample
    lacks, so its resamples, and their percentiles, all lie above the estimate.
    """
    low, high = np.quantile(values - values.mean(), [(1 - _SHARE) / 2, (1 + _SHARE) / 2])
    return estimate + float(low), estimate + float(high)
