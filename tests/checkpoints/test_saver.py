"""A save is all or nothing, at whatever instant the process dies, and retention never takes what is needed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glci_dist.checkpoints.manifest import NETWORKS_FILE, Checkpoint, folders
from glci_dist.checkpoints.reading import CheckpointVectors
from glci_dist.checkpoints.saver import SaveResult
from glci_dist.config import CheckpointsConfig
from glci_dist.errors import Superseded
from glci_dist.runs import attempts
from tests.checkpoints.saves import save_some, saver, state
from tests.small_run import newest_in
from tests.worlds import run_world

pytestmark = pytest.mark.distributed


def save_and_be_killed(run: Path, operation: int) -> None:
    """Save step 1, then step 2, in which the process is killed before its n-th operation on a file."""
    with saver(run, CheckpointsConfig(keep=2, keep_every=0)) as made:
        made.save(state(1), step=1, phase="joint", ends_phase=False)
        made.wait()
        left = operation

        def kill(event: str, details: tuple[Any, ...]) -> None:
            nonlocal left
            if any(str(run) in str(detail) for detail in details):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        sys.addaudithook(kill)
        made.save(state(2), step=2, phase="joint", ends_phase=False)


def is_all_of_its_step(found: Checkpoint) -> bool:
    whole = load_file(found.path / NETWORKS_FILE)
    vector = CheckpointVectors(found).read("completion.optimizer/exp_avg", 0, 600)
    return (
        bool((whole["completion/weight"] == found.step).all())
        and whole["completion/count"].item() == found.step
        and bool((vector[:200] == found.step).all())
        and bool((vector[200:] == found.step + 0.5).all())
    )


def test_a_process_killed_at_any_point_of_a_save_leaves_the_older_or_the_newer_one_whole(tmp_path: Path) -> None:
    latest = []
    for operation in range(60):
        run = tmp_path / f"{operation:02d}"
        try:
            run_world(1, save_and_be_killed, run, operation)
        except AssertionError as death:
            assert "died without an answer" in str(death)  # noqa: PT017
            killed = True
        else:
            killed = False
        found = newest_in(run / "checkpoints")
        assert found is not None
        assert is_all_of_its_step(found)
        latest.append(found.step)
        if not killed:
            break

    # The older one up to the rename, the newer one after it, and only these.
    assert latest == sorted(latest)
    assert latest.count(1) >= 4
    assert not killed


def test_what_a_killed_attempt_left_behind_does_not_hinder_the_next_and_is_cleared(tmp_path: Path) -> None:
    run_world(1, save_some, tmp_path, (1,))
    left = tmp_path / "attempts" / "0001" / "step-00000002.writing"
    left.mkdir()
    (left / NETWORKS_FILE).write_bytes(b"half")
    run_world(1, save_some, tmp_path, (2,))

    found = newest_in(tmp_path / "checkpoints")
    assert found is not None
    assert (found.step, found.manifest.attempt) == (2, 2)
    assert is_all_of_its_step(found)
    assert not list((tmp_path / "attempts").glob("*/*.writing"))


@pytest.mark.parametrize(
    ("retention", "ends", "kept"),
    [
        (CheckpointsConfig(keep=2, keep_every=0), (), [9, 8]),
        (CheckpointsConfig(keep=3, keep_every=0), (4,), [9, 8, 7, 4]),
        (CheckpointsConfig(keep=2, keep_every=3), (1,), [9, 8, 6, 3, 1]),
    ],
)
def test_retention_keeps_the_last_ones_the_multiples_and_the_ends_of_phases(
    tmp_path: Path, retention: CheckpointsConfig, ends: tuple[int, ...], kept: list[int]
) -> None:
    run_world(1, save_some, tmp_path, tuple(range(1, 10)), retention, ends)
    assert [step for step, _ in folders(tmp_path / "checkpoints")] == kept


def save_with_a_damaged_one(run: Path) -> None:
    with saver(run, CheckpointsConfig(keep=2, keep_every=0)) as made:
        for step in (1, 2, 3):
            made.save(state(step), step=step, phase="joint", ends_phase=False)
            made.wait()
            if step == 2:
                (run / "checkpoints" / "step-00000002" / NETWORKS_FILE).write_bytes(b"cut")


def test_a_damaged_checkpoint_takes_no_good_ones_place(tmp_path: Path) -> None:
    run_world(1, save_with_a_damaged_one, tmp_path)
    assert [step for step, _ in folders(tmp_path / "checkpoints")] == [3, 2, 1]


def save_on_a_disk_that_spoils_the_newest(run: Path) -> list[SaveResult]:
    """Of four saves, keeping two, the last two are damaged before they are read back; their sizes stay."""
    saved: list[SaveResult] = []

    def spoil(event: str, details: tuple[Any, ...]) -> None:
        if event == "glci.checkpoint" and details == ("verify", "step-00000004"):
            for step in (3, 4):
                path = run / "checkpoints" / f"step-{step:08d}" / NETWORKS_FILE
                path.write_bytes(path.read_bytes()[:-1] + b"?")

    with saver(run, CheckpointsConfig(keep=2, keep_every=0), saved) as made:
        for step in (1, 2, 3, 4):
            made.save(state(step), step=step, phase="joint", ends_phase=False)
            made.wait()
            # As if step 3 had not been read back: that one read serves several saves is another test's.
            made.verified.clear()
            if step == 3:
                sys.addaudithook(spoil)
    return saved


def test_before_anything_is_deleted_one_that_is_kept_is_read_back_whole(tmp_path: Path) -> None:
    (saved,) = run_world(1, save_on_a_disk_that_spoils_the_newest, tmp_path)
    assert [each.deleted for each in saved] == [(), (), ("step-00000001",), ()]
    assert [path.name for path, _, _ in saved[3].damaged] == ["step-00000004", "step-00000003"]
    for path, problem, aside in saved[3].damaged:
        assert problem == f"{NETWORKS_FILE} does not have its checksum"
        assert aside == tmp_path / "attempts" / "0001" / f"damaged-{path.name}"
    found = newest_in(tmp_path / "checkpoints")
    assert found is not None
    assert is_all_of_its_step(found)
    assert [step for step, _ in folders(tmp_path / "checkpoints")] == [2]


def count_reads(run: Path) -> list[str]:
    reads: list[str] = []
    sys.addaudithook(lambda event, details: reads.append(str(details[1])) if details[:1] == ("verify",) else None)
    with saver(run, CheckpointsConfig(keep=3, keep_every=0)) as made:
        for step in range(1, 11):
            made.save(state(step), step=step, phase="joint", ends_phase=False)
            made.wait()
    return reads


def test_one_reading_back_serves_as_long_as_that_checkpoint_is_among_the_newest(tmp_path: Path) -> None:
    (reads,) = run_world(1, count_reads, tmp_path)
    assert reads == ["step-00000004", "step-00000007", "step-00000010"]


def outlive_its_lease(run: Path) -> tuple[str, list[int], list[int]]:
    saved: list[SaveResult] = []
    said = ""
    try:
        with saver(run, CheckpointsConfig(keep=2, keep_every=0), saved) as made:
            made.save(state(1), step=1, phase="joint", ends_phase=False)
            made.wait()
            attempts.begin(run, ranks=1)
            made.save(state(2), step=2, phase="joint", ends_phase=False)
    except Superseded as superseded:
        said = str(superseded)
    return said, [step for step, _ in folders(run / "checkpoints")], [each.step for each in saved]


def test_a_superseded_attempt_cannot_commit(tmp_path: Path) -> None:
    ((said, steps, saved),) = run_world(1, outlive_its_lease, tmp_path)
    assert "attempt 1 of" in said
    assert "attempt 2 (process" in said
    assert steps == saved == [1]


def go_back(run: Path) -> int | None:
    with saver(run) as made:
        for step in (2, 4, 6):
            made.save(state(step), step=step, phase="joint", ends_phase=False)
        made.rewind(4)
        made.save(state(6), step=6, phase="joint", ends_phase=False)
        made.wait()
        return made.committed


def test_after_a_rollback_what_was_saved_later_is_gone_and_is_saved_anew(tmp_path: Path) -> None:
    assert run_world(1, go_back, tmp_path) == [6]
    found = newest_in(tmp_path / "checkpoints")
    assert found is not None
    assert (found.step, found.manifest.parent) == (6, 4)
    assert [step for step, _ in folders(tmp_path / "checkpoints")] == [6, 4, 2]


def time_of_copies(run: Path) -> list[float]:
    """What a save saw of a tensor that changed as soon as ``save`` had returned."""
    tensor = torch.zeros(30, 20)
    with saver(run) as made:
        first = state(1)
        made.save(
            type(first)({"completion/weight": tensor}, first.vectors, first.extra_state),
            step=1,
            phase="",
            ends_phase=False,
        )
        tensor.fill_(7)
    return [float(load_file(run / "checkpoints" / "step-00000001" / NETWORKS_FILE)["completion/weight"].max())]


def test_what_training_does_after_the_copy_does_not_reach_the_checkpoint(tmp_path: Path) -> None:
    assert run_world(1, time_of_copies, tmp_path) == [[0.0]]
