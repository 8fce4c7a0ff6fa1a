"""Every damage is seen and named, and nothing in a checkpoint is ever run."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash

from glci_dist.checkpoints.manifest import (
    MANIFEST_FILE,
    NETWORKS_FILE,
    Damaged,
    File,
    TemporarilyUnreadable,
    check_files,
    read,
)
from glci_dist.checkpoints.reading import (
    CheckpointVectors,
    check_contents,
    load_tensors,
    newest_intact,
    set_aside,
    verify_checkpoint,
)
from glci_dist.errors import Superseded, UserError
from glci_dist.runs import attempts
from tests.checkpoints.saves import save_some
from tests.worlds import run_world

pytestmark = pytest.mark.distributed
PART = "vectors-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    run_world(1, save_some, run, (1, 2))
    return run / "checkpoints"


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2."""
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << place % 8
    path.write_bytes(content)


def found_and_told(root: Path) -> tuple[int, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    checkpoint = newest_intact(root, damaged=lambda path, problem: told.append((path.name, problem)))
    assert checkpoint is not None
    return checkpoint.step, told


@pytest.mark.parametrize("name", [MANIFEST_FILE, NETWORKS_FILE, PART])
def test_a_flipped_bit_in_any_byte_of_any_file_is_seen_and_named(root: Path, name: str) -> None:
    path = root / "step-00000002" / name
    whole = path.read_bytes()
    # Each byte of what is small, and many of what is not, the first and last among them.
    places = range(len(whole)) if name == MANIFEST_FILE else sorted({*range(0, len(whole), 97), len(whole) - 1})
    for place in places:
        flip(path, place)
        assert _problems(root / "step-00000002", name), f"byte {place} of {name}"
        path.write_bytes(whole)
    assert found_and_told(root) == (2, [])


@pytest.mark.parametrize("name", [MANIFEST_FILE, NETWORKS_FILE, PART])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(path.read_bytes() + b"\n"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["one-byte-less", "half", "one-byte-more", "empty", "missing", "a-folder"],
)
def test_a_cut_emptied_or_missing_file_is_seen_and_named_and_the_older_one_taken(
    root: Path, name: str, damage: Callable[[Path], object]
) -> None:
    damage(root / "step-00000002" / name)
    step, told = found_and_told(root)
    assert step == 1
    ((folder, problem),) = told
    assert folder == "step-00000002"
    assert name in problem
    assert "\n" not in problem


def test_a_damaged_one_is_set_aside_under_a_name_of_its_own_each_time(root: Path) -> None:
    attempt = attempts.begin(root.parent, ranks=1)
    assert set_aside(root / "step-00000002", attempt) == attempt.folder / "damaged-step-00000002"
    shutil.copytree(root / "step-00000001", root / "step-00000002")
    assert set_aside(root / "step-00000002", attempt).name == "damaged-step-00000002.1"
    assert found_and_told(root) == (1, [])


def test_a_superseded_attempt_cannot_set_a_checkpoint_aside(root: Path) -> None:
    older = attempts.begin(root.parent, ranks=1)
    attempts.begin(root.parent, ranks=1)
    with pytest.raises(Superseded), older.fenced():
        set_aside(root / "step-00000002", older)
    assert found_and_told(root) == (2, [])


def look_without_files_to_open(root: Path) -> str:
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        verify_checkpoint(root / "step-00000002")
    except TemporarilyUnreadable as error:
        return str(error)
    return ""


def test_what_cannot_be_read_for_another_reason_than_damage_is_not_taken_for_damaged(root: Path) -> None:
    (said,) = run_world(1, look_without_files_to_open, root)
    assert "step-00000002" in said
    assert "cannot be read: Too many open files" in said


def test_who_did_not_verify_a_checkpoint_verifies_what_it_reads_of_it(root: Path) -> None:
    checkpoint = read(root / "step-00000002")
    flip(checkpoint.path / PART, -1)
    with pytest.raises(Damaged, match=f"{PART} does not have its checksum"):
        CheckpointVectors(checkpoint, verified=False).read("completion.optimizer/exp_avg", 0, 10)
    flip(checkpoint.path / NETWORKS_FILE, -1)
    with pytest.raises(Damaged, match=f"{NETWORKS_FILE} does not have its checksum"):
        load_tensors(checkpoint, verified=False)


class RunsACommand:
    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self._command,)


@pytest.mark.parametrize("name", [NETWORKS_FILE, PART])
@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_that_would_run_a_command_runs_nothing_and_is_refused(
    root: Path, tmp_path: Path, name: str, write: Callable[[object, object], None]
) -> None:
    mark = tmp_path / "it-ran"
    path = root / "step-00000002" / name
    with path.open("wb") as file:
        write({"completion/weight": RunsACommand(f"touch {mark}")}, file)
    # Its size and checksum stand in the manifest, as an attacker would see to.
    forge(path.parent, name)
    assert check_files(read(path.parent)) == []

    step, told = found_and_told(root)
    assert step == 1
    assert f"{name} is not in the safetensors format" in told[0][1]
    assert not mark.exists()
    content = path.read_bytes()
    pickle.loads(content) if write is pickle.dump else torch.load(io.BytesIO(content), weights_only=False)
    assert mark.exists(), "the file would not have run anything anyhow"


@pytest.mark.parametrize("elsewhere", ["../step-00000001/networks.safetensors", "/etc/passwd", "a/b", ".hidden"])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(root: Path, elsewhere: str) -> None:
    folder = root / "step-00000002"
    record = json.loads((folder / MANIFEST_FILE).read_text())
    record["files"][elsewhere] = record["files"][PART]
    _sign(folder, record)
    with pytest.raises(Damaged, match="lies elsewhere"):
        read(folder)


def test_vectors_of_which_a_part_is_in_no_file_are_refused(root: Path) -> None:
    folder = root / "step-00000002"
    record = json.loads((folder / MANIFEST_FILE).read_text())
    record["vectors"]["completion.optimizer/exp_avg"] = 700
    _sign(folder, record)
    with pytest.raises(Damaged, match=r"elements from 600 on of completion\.optimizer/exp_avg are in no file"):
        check_contents(read(folder))


def test_any_range_of_a_vector_is_read_and_none_beyond_it(root: Path) -> None:
    vectors = CheckpointVectors(read(root / "step-00000002"))
    assert vectors.names() == ["completion.optimizer/exp_avg"]
    assert vectors.read("completion.optimizer/exp_avg", 198, 202).tolist() == [2, 2, 2.5, 2.5]
    assert vectors.read("completion.optimizer/exp_avg", 5, 5).tolist() == []
    with pytest.raises(UserError, match="too short for the configured network"):
        vectors.read("completion.optimizer/exp_avg", 0, 601)


def forge(folder: Path, name: str) -> None:
    """Give a file's present size and checksum to the manifest."""
    record = json.loads((folder / MANIFEST_FILE).read_text())
    content = (folder / name).read_bytes()
    entry = File(len(content), xxhash.xxh3_128(content).hexdigest())
    record["files"][name] |= {"bytes": entry.bytes, "xxh3_128": entry.xxh3_128}
    _sign(folder, record)


def _sign(folder: Path, record: dict[str, object]) -> None:
    record.pop("xxh3_128")
    text = json.dumps(record, indent=1)
    digest = xxhash.xxh3_128(text.encode()).hexdigest()
    signed = text.removesuffix("\n}") + f',\n "xxh3_128": "{digest}"\n}}\n'
    (folder / MANIFEST_FILE).write_text(signed)


def _problems(folder: Path, name: str) -> list[str]:
    try:
        return [problem for problem in check_files(read(folder)) if name in problem]
    except Damaged as damage:
        return [str(damage)] if name in str(damage) else []
