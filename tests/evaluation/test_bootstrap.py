"""Intervals over the photos have the width that they claim, or are left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glci_dist.config import HolesConfig
from glci_dist.evaluation.bootstrap import interval, resamples
from glci_dist.evaluation.protocol import frozen_protocol
from glci_dist.evaluation.result import Result


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 500)
    low, high = interval(resamples(500, 4000) @ values / 500, values.mean())
    half = 1.96 * values.std() / 500**0.5
    assert low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_nine_and_a_half_intervals_of_ten_hold_the_true_mean() -> None:
    random, counts = np.random.default_rng(1), resamples(100, 400)
    held = 0
    for _ in range(1000):
        values = random.exponential(1.0, 100)
        low, high = interval(counts @ values / 100, values.mean())
        held += low <= 1.0 <= high
    assert 0.92 < held / 1000 < 0.965


def test_resamples_that_all_lie_above_the_estimate_still_surround_it() -> None:
    resampled = np.linspace(20.0, 24.0, 401)
    assert interval(resampled, 18.0) == pytest.approx((18.0 - 1.9, 18.0 + 1.9))


def result(values: list[float], **more: Any) -> Result:
    count = len(values)
    return Result(
        protocol=frozen_protocol("box", 32, HolesConfig(min_side=8, max_side=16, patch=20)),
        holes_sha256="",
        keys=tuple(map(str, range(count))),
        hole_shares=np.full(count, 0.1),
        per_photo={"one": {"identity": np.array(values)}, "other": {"identity": np.ones(count)}},
        **more,
    )


def test_a_metric_that_some_resample_knows_of_no_photo_has_no_interval() -> None:
    known = result([0.4] + [np.nan] * 9)
    assert (known.summary("one", "identity").value, known.summary("one", "identity").low) == (0.4, None)
    assert known.ratio("one", "other", "identity").low is None
    most = result([0.4, 0.5] * 10)
    assert most.summary("one", "identity").low is not None


def test_a_ratio_of_sums_resamples_both() -> None:
    values, denominators = [1.0, 2.0, 6.0, 0.5], np.array([1.0, 1.0, 2.0, 0.0])
    found = result(values * 10, denominators={"identity": np.tile(denominators, 10)})
    assert found.value("one", "identity") == pytest.approx(9.5 / 4)
    summary = found.summary("one", "identity")
    counts = resamples(40, 200)
    sums, totals = counts @ np.tile(values, 10), counts @ np.tile(denominators, 10)
    assert (summary.low, summary.high) == pytest.approx(interval(sums / totals, 9.5 / 4))
