"""Batches by step: the same from any number of processes and ranks, whatever some photos are like."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from glci_dist.config import CacheConfig, DataConfig, HolesConfig, OrderConfig
from glci_dist.data.batch import Batch
from glci_dist.data.decode import decode
from glci_dist.data.index import Index, load_index
from glci_dist.data.loader import NEIGHBOURS, Loader, StepDataset, make_loader
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from tests.data.conftest import SAMPLES_PER_SHARD

HOLES = HolesConfig(min_side=4, max_side=8, patch=8)
BATCH = 8


def settings(shards: Path, **changes: object) -> DataConfig:
    data = DataConfig(
        shards=str(shards), size=16, short_edge=[16, 20], order=OrderConfig(lanes=4), workers=0, prefetch=2
    )
    return replace(data, **changes)  # type: ignore[arg-type]


def loader(
    data: DataConfig, steps: range, *, seed: int = 1, rank: int = 0, world_size: int = 1, holes: HolesConfig = HOLES
) -> Loader:
    index = load_index(data.shards)
    return make_loader(index, data, holes, seed=seed, global_batch=BATCH, rank=rank, world_size=world_size, steps=steps)


def same(one: Batch, other: Batch) -> bool:
    values = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in values)


def encoded_photos(shards: Path) -> dict[str, bytes]:
    index = load_index(str(shards))
    store = ShardStore(index, CacheConfig())
    photos = {}
    for number, shard in enumerate(index.shards):
        for place in range(shard.samples):
            key, encoded = store.sample(number, place)
            photos[f"{shard.name}/{key}"] = encoded
    return photos


def crops(photo: np.ndarray) -> list[np.ndarray]:
    """Every crop of 16 px and its mirror image."""
    height, width = photo.shape[:2]
    cut = [photo[y : y + 16, x : x + 16] for y in range(height - 15) for x in range(width - 15)]
    return cut + [crop[:, ::-1] for crop in cut]


def damage(shards: Path, folder: Path, names: list[str]) -> Path:
    """A copy of the shards in which the photos ``shard/key`` are overwritten, at the same length."""
    shutil.copytree(shards, folder)
    for name, encoded in encoded_photos(shards).items():
        if name in names:
            path = folder / name.split("/")[0]
            content = path.read_bytes()
            assert content.count(encoded) == 1
            path.write_bytes(content.replace(encoded, encoded[:-40] + bytes(40)))
    return folder


def test_a_batch_has_the_shapes_and_types_that_it_says(small_shards: Path) -> None:
    holes = HolesConfig(kind="freeform", min_side=4, max_side=8, patch=8, max_count=2, stroke_radius=[1.0, 2.0])
    (batch,) = loader(settings(small_shards), range(5, 6), holes=holes)
    assert batch.step == 5
    assert (batch.photos.dtype, batch.photos.shape) == (torch.uint8, (8, 16, 16, 3))
    assert (batch.boxes.dtype, batch.boxes.shape) == (torch.int32, (8, 1, 4))
    assert (batch.strokes.dtype, batch.strokes.shape) == (torch.float32, (8, 8, 5))
    for patches in (batch.fake_patches, batch.real_patches):
        assert (patches.dtype, patches.shape) == (torch.int32, (8, 2))
    assert len(set(batch.keys)) == 8
    assert batch.replaced == ()


def test_each_photo_is_a_crop_of_the_one_its_key_names_at_a_short_edge_in_range(small_shards: Path) -> None:
    encoded = encoded_photos(small_shards)
    short_edges, places = set(), set()
    mirrored: list[list[bool]] = []
    for batch in loader(settings(small_shards), range(14)):
        mirrored.append([])
        for key, photo in zip(batch.keys, batch.photos.numpy(), strict=True):
            found = [
                (short_edge, number)
                for short_edge in range(16, 21)
                for number, crop in enumerate(crops(decode(encoded[key], short_edge=short_edge)))
                if (crop == photo).all()
            ]
            assert found, f"{key} at step {batch.step} is no crop of its photo"
            short_edge, number = found[0]
            count = len(crops(decode(encoded[key], short_edge=short_edge))) // 2
            short_edges.add(short_edge)
            mirrored[-1].append(number >= count)
            places.add(number % count)
    assert short_edges == {16, 17, 18, 19, 20}
    assert 0.3 < np.mean(mirrored) < 0.7
    assert len(set(map(tuple, mirrored))) > 10
    assert len(places) > 20


def test_no_photo_is_mirrored_without_flip(small_shards: Path) -> None:
    encoded = encoded_photos(small_shards)
    data = settings(small_shards, flip=False, short_edge=[16, 16])
    for batch in loader(data, range(7)):
        for key, photo in zip(batch.keys, batch.photos.numpy(), strict=True):
            upright = crops(decode(encoded[key], short_edge=16))
            assert any((crop == photo).all() for crop in upright[: len(upright) // 2])


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches_in_the_same_order(small_shards: Path, workers: int) -> None:
    steps = range(3, 33)
    alone = list(loader(settings(small_shards), steps))
    # Kept in a list, so that a batch would be seen to change if its memory were used again.
    together = list(loader(settings(small_shards, workers=workers), steps))
    assert [batch.step for batch in together] == list(steps)
    assert all(map(same, alone, together))


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_shares_the_same_global_batch(small_shards: Path, world_size: int) -> None:
    data = settings(small_shards)
    ranks = [loader(data, range(9), rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(loader(data, range(9)), *ranks, strict=True):
        assert tuple(itertools.chain(*(part.keys for part in parts))) == whole.keys
        for name in ("photos", "boxes", "strokes", "fake_patches", "real_patches"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_at_step_1000_gives_the_batch_that_running_to_it_gives(small_shards: Path, workers: int) -> None:
    (first, *_) = loader(settings(small_shards, workers=workers), range(1000, 1003))
    *_, last = loader(settings(small_shards), range(900, 1001))
    assert first.step == 1000
    assert same(first, last)


def test_seeds_and_steps_have_batches_of_their_own(small_shards: Path) -> None:
    data = settings(small_shards)
    batches = [*loader(data, range(4)), *loader(data, range(4), seed=2)]
    for one, other in itertools.combinations(batches, 2):
        assert not torch.equal(one.photos, other.photos)
        assert not torch.equal(one.boxes, other.boxes)
        assert not torch.equal(one.real_patches, other.real_patches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_replaced_by_the_next_of_its_shard_and_named(
    small_shards: Path, tmp_path: Path, workers: int
) -> None:
    names = list(encoded_photos(small_shards))
    # The last of the first shard, whose next is its first; and two that stand beside each other.
    last, first = names[SAMPLES_PER_SHARD - 1], names[0]
    pair, after = names[20:22], names[22]
    damaged = damage(small_shards, tmp_path / "damaged", [last, *pair])
    stands_for = {last: [last], pair[0]: pair, pair[1]: [pair[1]]}
    instead = {last: first, pair[0]: after, pair[1]: after}
    met = set()
    steps = range(14)
    sound = loader(settings(small_shards), steps)
    for whole, batch in zip(sound, loader(settings(damaged, workers=workers), steps), strict=True):
        expected = []
        for slot, (key, key_now) in enumerate(zip(whole.keys, batch.keys, strict=True)):
            assert key_now == instead.get(key, key)
            expected += [(*failed.split("/"), slot) for failed in stands_for.get(key, [])]
            met.update({key} & set(stands_for))
            if key not in stands_for:
                assert torch.equal(batch.photos[slot], whole.photos[slot])
        assert [(found.shard, found.key, found.slot) for found in batch.replaced] == expected
        assert all(found.reason and "\n" not in found.reason for found in batch.replaced)
    assert met == set(stands_for)


def test_a_replaced_sample_keeps_its_place_in_the_global_batch_on_every_rank(
    small_shards: Path, tmp_path: Path
) -> None:
    names = list(encoded_photos(small_shards))
    data = settings(damage(small_shards, tmp_path / "damaged", names[::3]))
    whole = [batch.replaced for batch in loader(data, range(7))]
    ranks = [[batch.replaced for batch in loader(data, range(7), rank=r, world_size=4)] for r in range(4)]
    assert any(whole)
    assert [tuple(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_without_a_sound_photo_ends_the_run_with_one_line_that_names_it(
    small_shards: Path, tmp_path: Path, workers: int
) -> None:
    names = [name for name in encoded_photos(small_shards) if name.startswith("shard-000002.tar/")]
    data = settings(damage(small_shards, tmp_path / "damaged", names), workers=workers)
    with pytest.raises(UserError, match=r"^shard-000002.tar: none of the \d+ samples .*glci shards verify") as end:
        list(loader(data, range(7)))
    assert "\n" not in str(end.value)
    assert str(min(SAMPLES_PER_SHARD, 1 + NEIGHBOURS)) in str(end.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_shard_ends_the_run_with_the_same_line_from_a_worker(
    small_shards: Path, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(small_shards, tmp_path / "shards")
    (tmp_path / "shards" / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"^[^\n]*shard-000001.tar cannot be read[^\n]*$"):
        list(loader(settings(tmp_path / "shards", workers=workers), range(7)))


def test_a_batch_that_the_ranks_do_not_divide_is_refused(small_shards: Path) -> None:
    with pytest.raises(UserError, match="a batch of 8 photos cannot be shared by 3 ranks"):
        loader(settings(small_shards), range(1), world_size=3)


def test_the_loader_leaves_the_random_numbers_of_the_training_process_alone(small_shards: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    list(loader(settings(small_shards, workers=1), range(2)))
    assert torch.equal(torch.rand(4), expected)


def test_a_reader_that_stops_early_leaves_no_worker_behind(small_shards: Path) -> None:
    # Of other tests in this process some may still be ending.
    before = set(multiprocessing.active_children())
    batches = iter(loader(settings(small_shards, workers=2), range(1000)))
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    del batches
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("is_read_to_its_end", [True, False])
def test_no_shard_stays_open_in_a_process_that_reads_by_itself(small_shards: Path, is_read_to_its_end: bool) -> None:
    def open_shards() -> list[str]:
        names = [path.name for path in Path("/proc/self/fd").iterdir()]
        files = [os.readlink(f"/proc/self/fd/{name}") for name in names if os.path.lexists(f"/proc/self/fd/{name}")]
        return [file for file in files if file.startswith(str(small_shards))]

    made = loader(settings(small_shards), range(2))
    batches = iter(made)
    next(batches)
    assert open_shards()
    if is_read_to_its_end:
        assert len(list(batches)) == 1
    else:
        batches.close()  # type: ignore[attr-defined]
    assert not open_shards()


def test_one_dataset_answers_any_step_at_any_time(small_shards: Path) -> None:
    data = settings(small_shards)
    index: Index = load_index(data.shards)
    dataset = StepDataset(index, data, HOLES, seed=1, global_batch=BATCH, slots=range(BATCH))
    asked = [dataset[step] for step in (40, 2, 1000, 2)]
    assert same(asked[1], asked[3])
    assert same(asked[0], next(iter(loader(data, range(40, 41)))))


def test_a_worker_imports_nothing_of_the_training() -> None:
    # Every worker pays for what this module imports, in memory.
    code = (
        "import sys, glci_dist.data.loader;"
        "heavy = {'deepspeed', 'hydra', 'tensorboard', 'matplotlib', 'torchmetrics', 'aiohttp', 's3fs', 'PIL'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
