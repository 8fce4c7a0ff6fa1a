"""A run whose newest checkpoint is damaged names it, sets it aside, and ends as if nothing had happened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glci_dist import compose
from glci_dist.checkpoints.manifest import folders
from glci_dist.errors import Fault
from glci_dist.runs.journal import read_journal
from glci_dist.training.loop import train
from tests.small_run import newest_in, small
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


def refusal(overrides: list[str]) -> str:
    try:
        train(compose.load(overrides))
    except Fault as fault:
        return str(fault)
    return ""


def test_a_run_none_of_whose_checkpoints_is_whole_ends_and_neither_renames_one_nor_begins_anew(
    finished: Path, faces_shards: str, tmp_path: Path
) -> None:
    checkpoints = Path(shutil.copytree(finished / "run", tmp_path / "run")) / "checkpoints"
    for _, path in folders(checkpoints):
        flip(path / "networks.safetensors")
    before = sorted(path.name for path in checkpoints.iterdir())
    said = run_world(2, refusal, small(faces_shards, tmp_path, steps=STEPS))

    assert said[0] == said[1]
    assert "none of the 3 checkpoint(s)" in said[0]
    assert "step-00000012: networks.safetensors does not have its checksum" in said[0]
    assert sorted(path.name for path in checkpoints.iterdir()) == before
    assert [event["event"] for event in read_journal(tmp_path / "run")].count("start") == 1
