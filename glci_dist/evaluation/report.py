"""An evaluation's files: a table and a picture for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from glci_dist.data.foreign import refuse_foreign_report
from glci_dist.data.grid import grid, scale_to
from glci_dist.errors import make_folder
from glci_dist.evaluation.evaluate import CompletedSample
from glci_dist.evaluation.result import Result

HOLE = (255, 255, 255)
_NAMES = ("evaluation.json", "evaluation.md", "evaluation.png")
_MARK = b"glci-evaluation-"


def prepare_folder(folder: Path) -> None:
    """Make ``folder``; UserError if that fails, or ``write_report`` would overwrite another program's files there."""
    refuse_foreign_report("evaluation", _MARK, *(folder / name for name in _NAMES))
    make_folder(folder, "--out")


def write_report(
    result: Result, samples: Sequence[CompletedSample], folder: Path, *, networks: Sequence[str], beside: str
) -> Path:
    """Write ``evaluation.json``, ``.md`` and ``.png`` into the existing ``folder``; returns the picture's path.

    The picture shows the composites of each of ``networks`` and of the baseline ``beside``, and the last network's raw
    output.
    """
    figures, table, picture = (folder / name for name in _NAMES)
    figures.write_text(result.to_json() + "\n", encoding="utf-8")
    table.write_text(result.table(networks), encoding="utf-8")
    several = len(networks) > 1
    titles = ["photo", "hole", beside, "output", *(networks if several else ["completed"])]
    rows = [
        [
            sample.photo,
            with_hole(sample.photo, sample.hole),
            sample.completed[beside],
            sample.outputs[networks[-1]],
            *(sample.completed[network] for network in networks),
        ]
        for sample in samples
    ]
    Image.fromarray(grid(rows, titles, scale_to(result.protocol.size))).save(picture)
    return picture


def with_hole(photo: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The photo (H, W, 3) with its hole, bool (H, W), painted white."""
    return np.where(hole[..., None], np.array(HOLE, np.uint8), photo)
