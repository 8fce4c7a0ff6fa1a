"""The frozen holes, and the photos cut for them out of real shards."""

import dataclasses
import hashlib
import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glci_dist.config import CacheConfig, HolesConfig
from glci_dist.data.index import Index, Shard, encode_table, load_index, save_index, table_name
from glci_dist.data.masks import crop_patches
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from glci_dist.evaluation.protocol import MASK_SETS, EvaluationPhotos, HoleProtocol, centre_crop, frozen_protocol

HOLES = HolesConfig(min_side=19, max_side=38)


def box_protocol(size: int, holes: HolesConfig) -> HoleProtocol:
    return frozen_protocol("box", size, holes)


def test_the_hole_of_a_photo_depends_on_its_number_alone() -> None:
    protocol = box_protocol(64, HOLES)
    together = protocol.masks(range(50))
    assert torch.equal(protocol.masks(range(17, 23)), together[17:23])
    assert torch.equal(box_protocol(64, HOLES).masks(range(50)), together)


def test_every_hole_is_one_rectangle_within_the_protocols_sides() -> None:
    masks = box_protocol(64, dataclasses.replace(HOLES, kind="freeform")).masks(range(400))[:, 0]
    heights, widths = masks.amax(dim=2).sum(dim=1), masks.amax(dim=1).sum(dim=1)
    assert torch.equal(heights * widths, masks.sum(dim=(1, 2)))
    for sides in (heights, widths):
        assert (sides.min(), sides.max()) == (19, 38)


def test_the_digest_tells_protocols_apart() -> None:
    protocol = box_protocol(64, HOLES)
    others = [
        dataclasses.replace(protocol, seed=protocol.seed + 1),
        box_protocol(64, dataclasses.replace(HOLES, max_side=37)),
    ]
    assert protocol.digest(100) == box_protocol(64, HOLES).digest(100)
    assert len({protocol.digest(100), protocol.digest(99), *(other.digest(100) for other in others)}) == 4


FROZEN = {
    "box": "c24c7aab93dd0733cb157ab33ee7df076e6f8f900d6c34d6658971e5ac2b8ad7",
    "centre": "a213fa517bd4b78a579531b188d0b0c08b02a51af11abec6ad5d425cf2515d51",
    "freeform-thin": "cbfac96b90ac03f253648cf578ecb4afc0e7ca50be3bdbdda2914e76d117696f",
    "freeform-medium": "c0be0e9a7d3174e4819a9206aa6961c981ee3bc9d780cd015a1e6a3f2d70265b",
    "freeform-thick": "646a757e6c89f953c0d81186c542cf6132693d923ac5571a86710431ef487f4a",
}


@pytest.mark.parametrize("name", MASK_SETS)
def test_every_mask_set_is_frozen(name: str) -> None:
    """A change here makes every figure published so far incomparable: it needs a new mask set."""
    assert frozen_protocol(name, 64, HOLES).digest(673) == FROZEN[name]


@pytest.mark.parametrize("name", MASK_SETS)
@pytest.mark.parametrize("size", [32, 64, 160])
def test_the_neighbourhood_holds_the_hole_and_lies_in_the_photo(name: str, size: int) -> None:
    protocol = frozen_protocol(name, size, HolesConfig(min_side=size // 4, max_side=size // 2, patch=5 * size // 8))
    masks, patches, side = protocol.masks(range(200)), protocol.patches(range(200)), protocol.holes.patch
    assert patches.min() >= 0
    assert patches.max() <= size - side
    inside = crop_patches(masks, patches, side)
    assert torch.equal(inside.sum((1, 2, 3)), masks.sum((1, 2, 3)))
    assert inside.sum((1, 2, 3)).min() > 0


def test_thicker_strokes_make_larger_holes() -> None:
    shares = [
        float(frozen_protocol(f"freeform-{name}", 64, HOLES).masks(range(400)).mean())
        for name in ("thin", "medium", "thick")
    ]
    assert 0.01 < shares[0] < 0.7 * shares[1] < 0.7 * shares[2] < 0.3


def test_only_the_box_set_takes_its_sides_from_the_run() -> None:
    other = HolesConfig(kind="centre", min_side=10, max_side=20, patch=32)
    equal = {
        name: frozen_protocol(name, 64, HOLES).digest(50) == frozen_protocol(name, 64, other).digest(50)
        for name in MASK_SETS
    }
    assert equal == {name: name != "box" for name in MASK_SETS}


def test_an_unknown_mask_set_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UserError, match=r"--masks=boxes .*box, centre, freeform-thin"):
        frozen_protocol("boxes", 64, HOLES)


def test_the_local_patch_of_a_run_does_not_move_the_holes() -> None:
    protocol = box_protocol(64, dataclasses.replace(HOLES, patch=48))
    assert protocol.digest(100) == box_protocol(64, HOLES).digest(100)


def test_holes_larger_than_the_photo_are_refused() -> None:
    with pytest.raises(UserError):
        box_protocol(32, dataclasses.replace(HOLES, max_side=40))


def encoded_photo(number: int) -> bytes:
    """JPEG of 80 x 48 px: thirds of red, green and blue from left to right; the green tells the number."""
    pixels = np.zeros((48, 80, 3), np.uint8)
    pixels[:, :26, 0] = 250
    pixels[:, 26:54, 1] = 250 - 30 * number
    pixels[:, 54:, 2] = 250
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_shards(folder: Path, contents: list[list[bytes]]) -> Index:
    """Shards of the given samples, their keys counted over all shards."""
    numbers = itertools.count()
    shards = []
    for shard, samples in enumerate(contents):
        path, rows = folder / f"shard-{shard:06d}.tar", []
        with tarfile.open(path, "w") as archive:
            for encoded in samples:
                key = f"{next(numbers):05d}"
                member = tarfile.TarInfo(f"{key}.jpg")
                member.size = len(encoded)
                rows.append((archive.offset + tarfile.BLOCKSIZE, len(encoded), key))
                archive.addfile(member, io.BytesIO(encoded))
        table = encode_table(rows)
        (folder / table_name(path.name)).write_bytes(table)
        whole = path.read_bytes()
        shards.append(Shard(path.name, len(samples), len(whole), sha256(whole), sha256(table)))
    save_index(folder, shards)
    return load_index(str(folder))


@pytest.fixture
def shards(tmp_path: Path) -> Index:
    return write_shards(tmp_path, [[encoded_photo(3 * shard + k) for k in range(3)] for shard in range(2)])


def test_photos_come_in_index_order_cut_from_the_middle(shards: Index) -> None:
    store = ShardStore(shards, CacheConfig())
    photos = list(EvaluationPhotos(shards, store, size=24, short_edge=24))
    assert [key for key, _ in photos] == [f"shard-{n // 3:06d}.tar/{n:05d}" for n in range(6)]
    for number, (_, photo) in enumerate(photos):
        assert photo.shape == (24, 24, 3)
        assert photo.dtype == np.uint8
        assert np.abs(photo[:, 10:14].astype(int) - [0, 250 - 30 * number, 0]).max() <= 12


def test_an_evaluation_takes_the_same_photos_every_time(shards: Index) -> None:
    one, other = (
        list(EvaluationPhotos(shards, ShardStore(shards, CacheConfig()), size=20, short_edge=24)) for _ in range(2)
    )
    for (key, photo), (other_key, other_photo) in zip(one, other, strict=True):
        assert key == other_key
        assert np.array_equal(photo, other_photo)


def test_a_crop_larger_than_the_short_edge_is_refused(shards: Index) -> None:
    with pytest.raises(UserError, match="60"):
        EvaluationPhotos(shards, ShardStore(shards, CacheConfig()), size=64, short_edge=60)
    with pytest.raises(UserError, match="photos of 8 px cannot be measured: SSIM needs 11 px or more"):
        EvaluationPhotos(shards, ShardStore(shards, CacheConfig()), size=8, short_edge=24)


def test_photos_are_taken_by_number_and_no_more_than_asked_for(shards: Index) -> None:
    photos = EvaluationPhotos(shards, ShardStore(shards, CacheConfig()), size=24, short_edge=24, count=4)
    assert len(photos) == 4
    assert [key for key, _ in photos[1:]] == [f"shard-{n // 3:06d}.tar/{n:05d}" for n in (1, 2, 3)]
    assert len(EvaluationPhotos(shards, ShardStore(shards, CacheConfig()), size=24, short_edge=24, count=99)) == 6
    with pytest.raises(IndexError):
        photos[4]


def test_a_photo_that_cannot_be_decoded_ends_the_evaluation_with_its_name(tmp_path: Path) -> None:
    index = write_shards(tmp_path, [[encoded_photo(0), b"not a photo"]])
    with pytest.raises(UserError, match=r"shard-000000.tar/00001"):
        list(EvaluationPhotos(index, ShardStore(index, CacheConfig()), size=24, short_edge=24))


@pytest.mark.parametrize(("height", "width"), [(10, 10), (11, 16), (17, 10)])
def test_a_centre_crop_leaves_equal_borders(height: int, width: int) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left = (height - 10) // 2, (width - 10) // 2
    assert np.array_equal(centre_crop(photo, 10), photo[top : top + 10, left : left + 10])
