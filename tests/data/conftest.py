"""Small shards whose photos differ in shape and content, for the tests of the stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from glci_dist.data.build import build_shards
from glci_dist.data.plan import BuildOptions

PHOTOS, SAMPLES_PER_SHARD = 60, 12
_SHAPES = [(24, 24), (24, 31), (40, 26), (64, 48), (20, 33)]


def draw_photo(number: int, height: int, width: int) -> np.ndarray:
    """A smooth picture uint8 (height, width, 3) that no other number has and no mirror leaves as it is."""
    chance = np.random.default_rng(number)
    coarse = chance.integers(0, 256, (5, 5, 3)).astype(np.float64)
    rows = np.linspace(0, 4, height)
    columns = np.linspace(0, 4, width)
    across = np.stack([[np.interp(columns, range(5), line[:, c]) for c in range(3)] for line in coarse])
    picture = np.stack([[np.interp(rows, range(5), across[:, c, x]) for x in range(width)] for c in range(3)])
    return np.ascontiguousarray(picture.transpose(2, 1, 0).round().astype(np.uint8))


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 photos of five shapes, short edges of 20 to 48 px, in 5 shards. Copy the folder to damage it."""
    folder = tmp_path_factory.mktemp("stream")
    (folder / "photos").mkdir()
    for number in range(PHOTOS):
        encoded = simplejpeg.encode_jpeg(draw_photo(number, *_SHAPES[number % 5]), quality=95)
        (folder / "photos" / f"{number:04d}.jpg").write_bytes(encoded)
    options = BuildOptions(samples=SAMPLES_PER_SHARD)
    build_shards(folder / "photos", folder / "shards", options, processes=1)
    return folder / "shards"
