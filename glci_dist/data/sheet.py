"""`glci shards show`: a contact sheet of photos drawn at random from the shards."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from glci_dist.config import CacheConfig
from glci_dist.data.draws import generator
from glci_dist.data.index import Index
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError

_CELL = 128
_GAP = 4


@dataclass(frozen=True)
class Sheet:
    """What the drawn photos are like."""

    photos: int
    bad: int
    """Photos that could not be decoded: crossed out on the sheet."""
    shortest: int
    """Least short edge of the photos, px."""
    longest: int
    """Greatest long edge of the photos, px."""
    mean_bytes: int
    """Of an encoded photo."""


def draw_sheet(index: Index, path: Path, *, photos: int, seed: int) -> Sheet:
    """Write a PNG of up to ``photos`` photos, each whole in a cell of 128 px, in the corpus's order.

    The same seed draws the same photos. UserError when a shard cannot be read or ``path`` not written.
    """
    if photos < 1:
        raise UserError(f"--photos {photos}: a contact sheet shows at least 1 photo")
    count = min(photos, index.total)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, rows * (_CELL + _GAP) + _GAP), "white")
    sizes: list[tuple[int, int]] = []
    encoded_bytes = 0
    store = ShardStore(index, CacheConfig())
    for cell, (shard, number) in enumerate(_draw(index, count, seed)):
        _, encoded = store.sample(shard, number)
        encoded_bytes += len(encoded)
        photo = _decode(encoded)
        if photo is None and store.mend(shard):
            _, encoded = store.sample(shard, number)
            photo = _decode(encoded)
        if photo is not None:
            sizes.append(photo.size)
        row, column = divmod(cell, columns)
        corner = (_GAP + column * (_CELL + _GAP), _GAP + row * (_CELL + _GAP))
        sheet.paste(_crossed_out() if photo is None else ImageOps.pad(photo, (_CELL, _CELL)), corner)
    store.close()
    try:
        sheet.save(path, "PNG")
    except OSError as fault:
        raise UserError(f"{path} cannot be written: {fault.strerror}; give another --out") from fault
    return Sheet(
        photos=count,
        bad=count - len(sizes),
        shortest=min((min(size) for size in sizes), default=0),
        longest=max((max(size) for size in sizes), default=0),
        mean_bytes=round(encoded_bytes / count),
    )


def _draw(index: Index, count: int, seed: int) -> list[tuple[int, int]]:
    """Shard and number of ``count`` different samples, in order."""
    random = generator(seed=seed, purpose="contact sheet", number=0)
    places = np.sort(random.choice(index.total, count, replace=False))
    ends = np.cumsum(index.counts)
    shards = np.searchsorted(ends, places, side="right")
    numbers = places - (ends - index.counts)[shards]
    return list(zip(shards.tolist(), numbers.tolist(), strict=True))


def _decode(encoded: bytes) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None


def _crossed_out() -> Image.Image:
    cell = Image.new("RGB", (_CELL, _CELL), "lightgrey")
    draw = ImageDraw.Draw(cell)
    draw.line((0, 0, _CELL, _CELL), fill="red", width=3)
    draw.line((0, _CELL, _CELL, 0), fill="red", width=3)
    return cell
