"""Figures to be read by people (table, picture) and by programs (JSON)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from glci_dist.data.grid import grid, scale_to

if TYPE_CHECKING:
    from glci_dist.evaluation.evaluate import Result, Sample

HOLE = (255, 255, 255)


def write_report(result: Result, samples: Sequence[Sample], folder: Path, *, network: str, beside: str) -> Path:
    """Writes ``evaluation.json``, ``.md`` and ``.png`` into ``folder``; returns the picture's path.

    ``network`` and ``beside`` name the methods of ``samples`` to draw: the network (its output and
    its composite) and the baseline (its composite).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(result.to_json(), encoding="utf-8")
    (folder / "evaluation.md").write_text(result.table(), encoding="utf-8")
    titles = ["photo", "hole", beside, "output", "completed"]
    rows = [
        [
            sample.photo,
            with_hole(sample.photo, sample.hole),
            sample.completed[beside],
            sample.outputs[network],
            sample.completed[network],
        ]
        for sample in samples
    ]
    picture = folder / "evaluation.png"
    Image.fromarray(grid(rows, titles, scale_to(result.protocol.size))).save(picture)
    return picture


def with_hole(photo: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The photo (H, W, 3) with its hole, bool (H, W), painted white."""
    return np.where(hole[..., None], np.array(HOLE, np.uint8), photo)
