"""What launchers leave for `glci status` is read as it was left, also from a disk that was full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from glci_dist.slurm.backends.scheduling import PREEMPTED
from glci_dist.slurm.notes import Notes, crashes, idle_starts, left_out, verdicts
from tests.disks import fill_disk, small_disk

RECORD = {"host": "n1", "reason": "it broke", "samples": [f"{n:06d}" for n in range(500)], "left_out": ""}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mib=1) as folder:
        yield folder


def test_a_verdict_can_be_given_on_a_disk_that_became_full(disk: Path) -> None:
    (disk / "jobs").mkdir()
    notes = Notes(disk, "7", 0, "n1")
    notes.reserve()
    notes.crash(time=1.0, step=3, cause="a")
    fill_disk(disk / "filler")
    for step in range(1000):
        notes.crash(time=2.0, step=step, cause="b")
    notes.verdict(RECORD)
    assert verdicts(disk, "7") == verdicts(disk, "7", 0) == [RECORD]
    # The last line that found room may be cut off: it is none.
    assert [crash["cause"] for crash in crashes(disk, "7", 0)][:2] == ["a", "b"]


def test_room_that_was_not_needed_is_given_back_and_is_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    Notes(tmp_path, "7", 0, "n1").reserve()
    assert verdicts(tmp_path, "7") == []
    # It was killed, and the next start clears up after it.
    last = Notes(tmp_path, "7", 1, "n1")
    last.reserve()
    assert len(list((tmp_path / "jobs").iterdir())) == 1
    last.release()
    assert not list((tmp_path / "jobs").iterdir())


def test_nodes_are_left_out_for_one_job_over_all_its_starts(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    for restart, host in ((0, "n2"), (3, "n5")):
        Notes(tmp_path, "7", restart, host).verdict({**RECORD, "left_out": host})
    Notes(tmp_path, "7", 4, "n1").verdict(RECORD)
    Notes(tmp_path, "8", 0, "n3").verdict({**RECORD, "left_out": "n3"})
    assert left_out(tmp_path, "7") == ["n2", "n5"]


def test_starts_that_bring_nothing_are_counted_and_those_that_make_room_are_not(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()

    def ended(restart: int, step: int, warning: str = "") -> int:
        """The count at the end of a start with the checkpoint of ``step``, which then asks for another."""
        found = idle_starts(tmp_path, "7", step=step, before=restart)
        Notes(tmp_path, "7", restart, "n1").again(step=step, why="lost", warning=warning)
        return found

    assert [ended(0, 0), ended(1, 0), ended(2, 5), ended(3, 5), ended(4, 5)] == [1, 2, 0, 1, 2]
    assert ended(5, 5, PREEMPTED) == 3
    # It is not among those that count.
    assert ended(6, 5) == 3
    # After a rollback the newest is an earlier one.
    assert ended(7, 4) == 4
    assert ended(8, 9) == 0
    assert idle_starts(tmp_path, "8", step=0, before=0) == 1
