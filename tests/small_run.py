"""The smallest run that is one: 32 px, 4 photos a step; for tests of what surrounds the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glci_dist import compose
from glci_dist.checkpoints import reading
from glci_dist.checkpoints.manifest import Checkpoint
from glci_dist.data.build import build_shards
from glci_dist.data.demo_faces import write_corpus
from glci_dist.data.plan import BuildOptions
from glci_dist.errors import Ending
from glci_dist.training.train import train
from tests.distributed.recordings import tiny

_SMALL = (
    "name=run",
    "global_batch=4",
    "data.size=32",
    "data.short_edge=[32,36]",
    "data.mean_colour=[0.5,0.5,0.5]",
    "holes.min_side=8",
    "holes.max_side=16",
    "holes.patch=20",
)


def small(shards: Path | str, runs: Path, *, steps: tuple[int, int, int], extra: tuple[str, ...] = ()) -> list[str]:
    """Overrides of a run at ``runs``/run with so many steps in its three phases."""
    return tiny(str(shards), str(runs), steps=steps, extra=(*_SMALL, *extra))


def build_faces(folder: Path, *, photos: int, samples: int) -> Path:
    """Shards of ``samples`` rendered faces each."""
    write_corpus(folder / "photos", photos=photos, seed=3, size=40, processes=1)
    build_shards(folder / "photos", folder / "shards", BuildOptions(samples=samples), processes=1)
    return folder / "shards"


def train_to_its_end(overrides: list[str]) -> str:
    """Train a run in this process; why it ended early, empty where it did not."""
    try:
        train(compose.load(overrides))
    except Ending as ending:
        return str(ending)
    return ""


def events(runs: Path, kind: str) -> list[dict[str, Any]]:
    """The entries of a kind in the journal of ``small``'s run."""
    lines = (runs / "run" / "journal.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == kind]


def newest_in(root: Path) -> Checkpoint | None:
    """The newest checkpoint, none of which may be damaged."""

    def damaged(path: Path, problem: str) -> None:
        raise AssertionError(f"{path} is damaged: {problem}")

    return reading.newest_intact(root, damaged=damaged)


def final_files(run: Path, step: int) -> dict[str, bytes]:
    """The last checkpoint's files, but for the manifest, which has times in it."""
    saved = newest_in(run / "checkpoints")
    assert saved is not None
    assert saved.step == step
    return {name: (saved.path / name).read_bytes() for name in saved.manifest.files}
