"""The embedded corpus: rendered faces, built into training and held-out shards."""

from __future__ import annotations

import shutil
from pathlib import Path

from glci_dist.data.build import build_shards
from glci_dist.data.demo_faces import write_corpus
from glci_dist.data.index import load_index
from glci_dist.data.plan import BuildOptions

_SEED = 2017
_SAMPLES = 250
"""Of a shard: so few that a small corpus still has shards to permute."""


def build_demo_corpus(folder: Path, *, train: int, val: int, size: int, processes: int) -> None:
    """Render ``train`` and ``val`` different faces of ``size`` px into ``folder``/train and ``folder``/val.

    Every face is another one: the two parts are drawn with different seeds. A part that is
    finished stays; one that was interrupted is made anew. Raises ``UserError`` for numbers that
    cannot be and for a folder that holds something else.
    """
    for part, photos, seed in (("train", train, _SEED), ("val", val, _SEED + 1)):
        rendered = folder / f"{part}-photos"
        if (folder / part / "index.json").exists() and load_index(str(folder / part)).total == photos:
            continue
        if rendered.exists():
            # An interrupted build: its photos and shards are the command's own, and quickly made.
            shutil.rmtree(rendered)
            shutil.rmtree(folder / part, ignore_errors=True)
        write_corpus(rendered, photos=photos, seed=seed, size=size, processes=processes)
        build_shards(rendered, folder / part, BuildOptions(samples=_SAMPLES), processes=processes)
        shutil.rmtree(rendered)
