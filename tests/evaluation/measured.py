"""Evaluations of made-up photos in this process."""

from __future__ import annotations

from typing import Any

import numpy as np

from glci_dist.evaluation.evaluate import evaluate
from glci_dist.evaluation.result import Result

Pairs = list[tuple[str, np.ndarray]]


def noise_photos(count: int, size: int = 32) -> Pairs:
    rng = np.random.default_rng(5)
    return [(f"shard/{i}", rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for i in range(count)]


def evaluated(*args: Any, **kwargs: Any) -> Result:
    """``evaluate`` by this process alone, which therefore has the result."""
    result = evaluate(*args, **kwargs)
    assert result is not None
    return result
