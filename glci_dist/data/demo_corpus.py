"""`glci demo-corpus`: rendered faces, built into training and held-out shards."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from glci_dist.data.build import build_shards
from glci_dist.data.demo_faces import write_corpus
from glci_dist.data.index import load_index
from glci_dist.data.plan import BuildOptions, check_folder, has_plan, is_complete, read_plan
from glci_dist.errors import UserError

_SEED = 2017
_SAMPLES = 250
"""Per shard: few, so that a small corpus has several shards to permute."""
_FACE = re.compile(r"face-\d{6,}\.jpg")


def build_demo_corpus(folder: Path, *, train: int, val: int, size: int, processes: int) -> None:
    """Render ``train`` and ``val`` different faces of ``size`` px into ``folder``/train and ``folder``/val.

    All faces differ: the two parts have different seeds. A finished part is kept; an interrupted one is made again.
    Raises ``UserError`` for invalid numbers and for a folder that holds other files, which it then leaves unchanged.
    """
    parts = (("train", train, _SEED), ("val", val, _SEED + 1))
    wanted = [(part, photos, seed) for part, photos, seed in parts if not _is_finished(folder, part, photos)]
    for part, _, _ in wanted:
        _check_rendered(folder / f"{part}-photos")
    for part, photos, seed in wanted:
        rendered = folder / f"{part}-photos"
        if rendered.exists():
            # An interrupted build: this command made the photos and shards, and they are made quickly.
            shutil.rmtree(rendered)
            shutil.rmtree(folder / part, ignore_errors=True)
        write_corpus(rendered, photos=photos, seed=seed, size=size, processes=processes)
        build_shards(rendered, folder / part, BuildOptions(samples=_SAMPLES), processes=processes)
        shutil.rmtree(rendered)


def _is_finished(folder: Path, part: str, photos: int) -> bool:
    """Whether ``part`` is complete. UserError if its folder holds other files than this command's."""
    shards = folder / part
    check_folder(shards)
    if not has_plan(shards):
        if shards.is_dir() and any(path.name != "build.jsonl" for path in shards.iterdir()):
            raise UserError(f"{shards} holds {next(shards.iterdir()).name}, not a demo corpus; choose another DEST")
        return False
    source = Path(read_plan(shards).source)
    if source.name != f"{part}-photos":
        raise UserError(f"{shards} holds shards of {source}, not a demo corpus; choose another DEST")
    if not is_complete(shards):
        return False
    total = load_index(str(shards)).total
    if total != photos:
        raise UserError(
            f"{shards} holds {total} rendered faces (asked: {photos}); give --{part} {total} or another DEST"
        )
    return True


def _check_rendered(rendered: Path) -> None:
    """UserError if the folder of rendered faces holds other files, as it is removed in the end."""
    if not rendered.exists():
        return
    if rendered.is_symlink() or not rendered.is_dir():
        raise UserError(f"{rendered} is in the way; move it away, or choose another DEST")
    strangers = sorted(path.name for path in rendered.iterdir() if not _FACE.fullmatch(path.name))
    if strangers:
        raise UserError(f"{rendered} holds {strangers[0]}, which is no rendered face; choose another DEST")
