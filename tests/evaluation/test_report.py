"""The files a person looks at."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glci_dist.config import HolesConfig
from glci_dist.evaluation.baselines import mean_colour, telea
from glci_dist.evaluation.evaluate import complete_samples
from glci_dist.evaluation.protocol import frozen_protocol
from glci_dist.evaluation.report import grid, with_hole, write_report
from tests.evaluation.measured import evaluated


def flat(value: int, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def test_a_grid_shows_every_picture_once_in_its_place() -> None:
    rows = [[flat(10), flat(60), flat(110)], [flat(20), flat(70), flat(120)]]
    picture = grid(rows, ["a", "b", "c"], scale=3)
    assert picture.dtype == np.uint8
    centres = []
    for value in (10, 60, 110, 20, 70, 120):
        here = (picture == value).all(axis=2)
        assert here.sum() >= 48 * 48
        centres.append(np.argwhere(here).mean(axis=0))
    lines, columns = np.array(centres).reshape(2, 3, 2).transpose(2, 0, 1)
    assert (np.diff(lines, axis=0) > 48).all()
    assert np.ptp(lines, axis=1).max() < 1
    assert (np.diff(columns, axis=1) > 48).all()
    assert np.ptp(columns, axis=0).max() < 1


def test_each_column_has_its_title_above_it() -> None:
    row = [flat(128, 64), flat(128, 64)]
    blank = grid([row], ["", ""], scale=2)
    titled = grid([row], ["", "completed"], scale=2)
    changed = np.argwhere((blank != titled).any(axis=2)) if blank.shape == titled.shape else None
    assert changed is not None
    assert len(changed) > 50
    assert changed[:, 1].min() > titled.shape[1] / 2
    assert changed[:, 0].max() < titled.shape[0] - 2 * 64


@pytest.mark.parametrize("rows", [[], [[flat(0)]]])
def test_a_grid_needs_a_picture_for_each_title(rows: list[list[np.ndarray]]) -> None:
    with pytest.raises(ValueError, match="one a title"):
        grid(rows, ["photo", "hole"], scale=1)


def test_a_hole_is_painted_over_the_photo_alone() -> None:
    photo, hole = flat(30), np.zeros((16, 16), bool)
    hole[2:5, 3:9] = True
    shown = with_hole(photo, hole)
    assert (shown[hole] == 255).all()
    assert np.array_equal(shown[~hole], photo[~hole])


def test_a_report_is_a_table_json_and_a_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    photos = [(f"s/{i}", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for i in range(3)]
    protocol = frozen_protocol("box", 32, HolesConfig(min_side=8, max_side=16, patch=20))
    methods = {"Telea": telea, "network": mean_colour((0.2, 0.4, 0.6))}
    result = evaluated(methods, photos, protocol)
    samples = complete_samples(methods, photos, protocol, count=2)
    (tmp_path / "new").mkdir()
    picture = write_report(result, samples, tmp_path / "new", networks=["network"], beside="Telea")
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text())["photos"] == 3
    assert (tmp_path / "new" / "evaluation.md").read_text() == result.table(["network"])
    width, height = Image.open(picture).size
    assert picture.name == "evaluation.png"
    assert width > 5 * 32 * 4
    assert height > 2 * 32 * 4
