"""U-IDS and P-IDS: known cases, the published computation, and when they are left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from glci_dist.config import HolesConfig
from glci_dist.evaluation.baselines import mean_colour
from glci_dist.evaluation.bootstrap import interval, resamples
from glci_dist.evaluation.discriminative import discriminative_scores
from glci_dist.evaluation.feature_metrics import WHOLE_PHOTO, FeatureMetric, Features
from glci_dist.evaluation.protocol import frozen_protocol
from glci_dist.evaluation.result import Result
from tests.evaluation.measured import evaluated, noise_photos


def features(rows: int, columns: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (rows, columns)).astype(np.float32)


def scores(composites: np.ndarray, photos: np.ndarray) -> tuple[float, float]:
    u_ids, p_ids = discriminative_scores(composites, photos)
    assert u_ids.shape == p_ids.shape == (len(photos),)
    return float(u_ids.mean()), float(p_ids.mean())


def test_composites_that_a_plane_parts_from_photos_score_nothing() -> None:
    assert scores(features(200, 5, 1, shift=20.0), features(200, 5, 2)) == (0.0, 0.0)


def test_composites_like_photos_score_nearly_a_half() -> None:
    u_ids, p_ids = scores(features(4000, 5, 1), features(4000, 5, 2))
    assert u_ids == pytest.approx(0.5, abs=0.03)
    assert p_ids == pytest.approx(0.5, abs=0.03)


def test_composites_equal_to_their_photos_are_told_by_chance_and_beat_none() -> None:
    photos = features(300, 5, 3)
    assert scores(photos, photos) == (0.5, 0.0)


def test_scores_fall_as_composites_move_away() -> None:
    photos = features(2000, 5, 4)
    found = [scores(features(2000, 5, 5, shift), photos) for shift in (0.0, 0.3, 0.6, 1.2)]
    for score in zip(*found, strict=True):
        assert sorted(score, reverse=True) == list(score)
        assert score[0] - score[-1] > 0.3


def test_scores_are_those_of_the_published_code() -> None:
    photos = features(300, 8, 6)
    composites = photos + features(300, 8, 7, shift=0.1)
    classifier = LinearSVC(dual=False)
    inputs, targets = np.concatenate([photos, composites]), np.array([1] * 300 + [0] * 300)
    classifier.fit(inputs, targets)
    beaten = classifier.decision_function(composites) > classifier.decision_function(photos)
    assert scores(composites, photos) == pytest.approx(
        (1 - classifier.score(inputs, targets), beaten.mean()), abs=1e-12
    )


def test_scores_are_those_of_the_classifiers_formula() -> None:
    """The minimum of |w|^2 / 2 + the sum of squared hinge losses, with the bias as a weight."""
    photos = features(200, 4, 8).astype(np.float64)
    composites = photos + features(200, 4, 9, shift=0.3)
    inputs = np.concatenate([photos, composites])
    inputs = np.concatenate([inputs, np.ones((400, 1))], 1)
    signs = np.repeat([1.0, -1.0], 200)

    def loss(weights: np.ndarray) -> float:
        return float(weights @ weights / 2 + (np.maximum(0, 1 - signs * (inputs @ weights)) ** 2).sum())

    decisions = inputs @ scipy.optimize.minimize(loss, np.zeros(5), tol=1e-10).x
    wrong = ((decisions > 0) != (signs > 0)).mean()
    beaten = (decisions[200:] > decisions[:200]).mean()
    assert 0.1 < wrong < 0.5
    assert scores(composites, photos) == pytest.approx((wrong, beaten), abs=0.005)


class MeanColours(FeatureMetric):
    """Three features."""

    frechet_name = "frechet"
    regions = (WHOLE_PHOTO,)

    def extract(self, pictures: Tensor, photos: Tensor) -> Features:
        return Features((), pictures.mean((2, 3)))


def measured(photos: int) -> Result:
    protocol = frozen_protocol("box", 32, HolesConfig(min_side=8, max_side=16, patch=20))
    grey = {"grey": mean_colour((0.5, 0.5, 0.5))}
    return evaluated(grey, noise_photos(photos), protocol, feature_metrics=[MeanColours()], replicates=50)


def test_an_evaluation_has_both_with_intervals_of_the_photos_decisions() -> None:
    result = measured(40)
    assert result.names("grey")[-3:] == ["frechet", "u_ids", "p_ids"]
    assert result.notes == ()
    for name in ("u_ids", "p_ids"):
        decisions = result.per_photo["grey"][name]
        expected = interval(resamples(40, 50) @ decisions / 40, decisions.mean())
        found = result.summary("grey", name)
        assert found.value == pytest.approx(decisions.mean())
        assert (found.low, found.high) == pytest.approx(expected)
    photos, completed = result.photo_features["frechet"], result.features["grey"]["frechet"]
    assert (result.value("grey", "u_ids"), result.value("grey", "p_ids")) == scores(completed, photos)


@pytest.mark.parametrize("photos", [2, 3])
def test_with_no_more_photos_than_features_they_are_left_out_and_a_line_says_so(photos: int) -> None:
    result = measured(photos)
    assert result.names("grey")[-1] == "frechet"
    [note] = result.notes
    assert "U-IDS and P-IDS (EfficientNet-Lite0) are left out" in note
    assert "they need more than 3 photos" in note
    lines = result.table().splitlines()
    assert lines.count(note) == 1
    assert not any(line.startswith("| U-IDS") for line in lines)
    document = json.loads(result.to_json())
    assert document["notes"] == [note]
    assert "u_ids" not in document["methods"]["grey"]


def test_one_photo_more_than_features_is_enough() -> None:
    result = measured(4)
    assert result.names("grey")[-2:] == ["u_ids", "p_ids"]
    assert "| U-IDS (EfficientNet-Lite0; 0.5 is perfect) ↑" in result.table()


def test_a_ratio_to_a_share_that_a_resample_lacks_has_no_interval() -> None:
    result = measured(40)
    result.per_photo["grey"]["p_ids"][:] = torch.eye(40)[0].numpy()
    ratio = result.ratio("grey", "grey", "p_ids")
    assert (ratio.value, ratio.low, ratio.high) == (1.0, None, None)
