"""`glci shards show`: a contact sheet of photos drawn at random from the shards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo

from glci_dist.config import CacheConfig
from glci_dist.data.decode import DecodeError, decode
from glci_dist.data.draws import generator
from glci_dist.data.foreign import refuse_foreign_report
from glci_dist.data.index import Index
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError

_CELL = 128
_GAP = 4
_MARK = "glci-dist contact sheet"


@dataclass(frozen=True)
class SheetStatistics:
    """Statistics of the drawn photos."""

    photos: int
    refused: tuple[tuple[str, str], ...]
    """Name (``<shard>/<key>``) and reason of photos that cannot be decoded; they are crossed out on the sheet."""
    shortest: int
    """Smallest short edge of the photos, px."""
    longest: int
    """Largest long edge of the photos, px."""
    mean_bytes: int
    """Mean size of an encoded photo."""


def check_sheet(path: Path, *, photos: int) -> None:
    """Raise UserError if a sheet of so many photos cannot be drawn, or not to ``path``."""
    if photos < 1:
        raise UserError(f"--photos {photos}: a contact sheet shows at least 1 photo")
    if path.suffix.lower() != ".png":
        raise UserError(f"--out {path}: a contact sheet is a PNG; give a name that ends in .png")
    refuse_foreign_report("contact sheet", _MARK.encode(), path)


def draw_sheet(index: Index, path: Path, *, photos: int, seed: int) -> SheetStatistics:
    """Write a PNG of up to ``photos`` photos, each scaled into a cell of 128 px, in the corpus's order.

    The same seed draws the same photos. Raises as ``check_sheet``, and UserError if a shard cannot be read or ``path``
    cannot be written.
    """
    check_sheet(path, photos=photos)
    count = min(photos, index.total)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, rows * (_CELL + _GAP) + _GAP), "white")
    sizes: list[tuple[int, int]] = []
    refused: list[tuple[str, str]] = []
    encoded_bytes = 0
    store = ShardStore(index, CacheConfig())
    for cell, (shard, number) in enumerate(_draw(index, count, seed)):
        key, encoded = store.sample(shard, number)
        encoded_bytes += len(encoded)
        try:
            photo = Image.fromarray(store.decoded(shard, number, partial(decode, short_edge=None), encoded=encoded))
            sizes.append(photo.size)
            picture = ImageOps.pad(photo, (_CELL, _CELL))
        except DecodeError as error:
            refused.append((f"{index.shards[shard].name}/{key}", str(error)))
            picture = _crossed_out()
        row, column = divmod(cell, columns)
        corner = (_GAP + column * (_CELL + _GAP), _GAP + row * (_CELL + _GAP))
        sheet.paste(picture, corner)
    store.close()
    try:
        mark = PngInfo()
        mark.add_text("Software", _MARK)
        sheet.save(path, "PNG", pnginfo=mark)
    except OSError as fault:
        raise UserError(f"{path} cannot be written: {fault.strerror}; give another --out") from fault
    return SheetStatistics(
        photos=count,
        refused=tuple(refused),
        shortest=min((min(size) for size in sizes), default=0),
        longest=max((max(size) for size in sizes), default=0),
        mean_bytes=round(encoded_bytes / count),
    )


def _draw(index: Index, count: int, seed: int) -> list[tuple[int, int]]:
    """Shard and number of ``count`` distinct random samples, in order."""
    random = generator(seed=seed, purpose="contact sheet", number=0)
    places = np.sort(random.choice(index.total, count, replace=False))
    ends = np.cumsum(index.counts)
    shards = np.searchsorted(ends, places, side="right")
    numbers = places - (ends - index.counts)[shards]
    return list(zip(shards.tolist(), numbers.tolist(), strict=True))


def _crossed_out() -> Image.Image:
    cell = Image.new("RGB", (_CELL, _CELL), "lightgrey")
    draw = ImageDraw.Draw(cell)
    draw.line((0, 0, _CELL, _CELL), fill="red", width=3)
    draw.line((0, _CELL, _CELL, 0), fill="red", width=3)
    return cell
