"""A run whose newest checkpoint is damaged names it, sets it aside, and ends as if nothing had happened."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from glci_dist import compose
from glci_dist.checkpoints.manifest import folders
from glci_dist.training.train import train
from tests.journal import read_journal
from tests.small_run import newest_in, small, train_to_its_end
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
STEPS = (8, 2, 2)
NEWEST, OLDER = 10, 8
FILES = (
    "manifest.json",
    "networks.safetensors",
    "vectors-00001-of-00002.safetensors",
    "vectors-00002-of-00002.safetensors",
)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
}


def train_to_the_end(overrides: list[str]) -> None:
    train(compose.load(overrides))


@pytest.fixture(scope="module")
def finished(faces_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs' folder of an undisturbed run, with its checkpoints of steps 8, 10 and 12."""
    runs = tmp_path_factory.mktemp("finished")
    run_world(2, train_to_the_end, small(faces_shards, runs, steps=STEPS))
    assert [step for step, _ in folders(runs / "run" / "checkpoints")] == [sum(STEPS), NEWEST, OLDER]
    return runs


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_the_run_goes_on_from_the_older_one_with_equal_results(
    finished: Path, faces_shards: str, tmp_path: Path, file: str, damage: str
) -> None:
    expected = finished / "run" / "checkpoints" / f"step-{sum(STEPS):08d}"
    checkpoints = Path(shutil.copytree(finished / "run", tmp_path / "run")) / "checkpoints"
    shutil.rmtree(checkpoints / expected.name)
    DAMAGES[damage](checkpoints / f"step-{NEWEST:08d}" / file)

    run_world(2, train_to_the_end, small(faces_shards, tmp_path, steps=STEPS))

    (told,) = (event for event in read_journal(tmp_path / "run") if event["event"] == "damaged")
    assert told["checkpoint"] == f"step-{NEWEST:08d}"
    assert file in told["problem"]
    assert told["set_aside"] == f"attempts/0002/damaged-step-{NEWEST:08d}"
    assert (tmp_path / "run" / told["set_aside"]).is_dir()
    resumed = [event["step"] for event in read_journal(tmp_path / "run") if event["event"] == "resume"]
    assert resumed == [OLDER]
    saved = newest_in(checkpoints)
    assert saved is not None
    assert saved.step == sum(STEPS)
    for name in FILES[1:]:
        assert (saved.path / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_run_none_of_whose_checkpoints_is_whole_ends_and_neither_renames_one_nor_begins_anew(
    finished: Path, faces_shards: str, tmp_path: Path
) -> None:
    checkpoints = Path(shutil.copytree(finished / "run", tmp_path / "run")) / "checkpoints"
    for _, path in folders(checkpoints):
        flip(path / "networks.safetensors")
    before = sorted(path.name for path in checkpoints.iterdir())
    said = run_world(2, train_to_its_end, small(faces_shards, tmp_path, steps=STEPS))

    assert said[0] == said[1]
    assert "none of the 3 checkpoint(s)" in said[0]
    assert "step-00000012: networks.safetensors does not have its checksum" in said[0]
    assert sorted(path.name for path in checkpoints.iterdir()) == before
    assert [event["event"] for event in read_journal(tmp_path / "run")].count("start") == 1


def train_with_a_mount_of_its_own(overrides: list[str], damaged: Path, instead_of: Path) -> str:
    """Rank 1 finds other bytes where rank 0 finds those that were written, as on a host with a sick disk or cache."""
    if os.environ["RANK"] == "1":
        # For this thread and its children alone.
        assert ctypes.CDLL(None, use_errno=True).unshare(0x00020000) == 0, os.strerror(ctypes.get_errno())
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "--bind", damaged, instead_of], check=True)
    return train_to_its_end(overrides)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize("file", ["networks.safetensors", "vectors-00002-of-00002.safetensors"])
def test_a_rank_that_reads_other_bytes_than_were_written_ends_the_run_and_names_its_host(
    finished: Path, faces_shards: str, tmp_path: Path, file: str
) -> None:
    checkpoints = Path(shutil.copytree(finished / "run", tmp_path / "run")) / "checkpoints"
    shutil.rmtree(checkpoints / f"step-{sum(STEPS):08d}")
    original = checkpoints / f"step-{NEWEST:08d}" / file
    damaged = Path(shutil.copy(original, tmp_path / "damaged"))
    flip(damaged)
    before = sorted(path.name for path in checkpoints.iterdir())
    said = run_world(2, train_with_a_mount_of_its_own, small(faces_shards, tmp_path, steps=STEPS), damaged, original)

    assert said[0] == said[1]
    assert f"rank 1 on {socket.gethostname()}: {file} does not have its checksum" in said[0]
    assert sorted(path.name for path in checkpoints.iterdir()) == before
    run_world(2, train_to_the_end, small(faces_shards, tmp_path, steps=STEPS))
    resumed = [event["step"] for event in read_journal(tmp_path / "run") if event["event"] == "resume"]
    assert resumed == [NEWEST]


def test_a_checkpoint_of_another_configuration_than_the_run_s_is_refused(
    finished: Path, faces_shards: str, tmp_path: Path
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    # As if the folder's file were of another run, or had been edited.
    config.write_text(config.read_text().replace("seed: 0", "seed: 5"))
    said = run_world(2, train_to_its_end, small(faces_shards, tmp_path, steps=STEPS, extra=("seed=5",)))
    assert said[0] == said[1]
    assert f"step-{sum(STEPS):08d} belongs to another configuration (there / here): seed: 0 / 5" in said[0]
    run_world(
        2, train_to_the_end, small(faces_shards, tmp_path, steps=STEPS, extra=("seed=5", "checkpoints.accept=[seed]"))
    )
