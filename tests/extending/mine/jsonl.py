"""A logger without further packages: a line of JSON each time that scalars are written."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from glci_dist.extensions import Logger, RunInfo


class JsonLines(Logger):
    """``run`` is the run's to give."""

    def __init__(self, *, run: RunInfo, file: str = "scalars.jsonl") -> None:
        self._path = run.folder / file

    def begin(self, step: int, panels: Mapping[str, Sequence[str]]) -> None:
        self._write({"begin": step, "panels": {title: list(names) for title, names in panels.items()}})

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._write({"step": step, **values})

    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._write({"step": step, "picture": name, "shape": picture.shape})

    def _write(self, line: object) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
