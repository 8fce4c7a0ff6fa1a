"""What an attempt leaves of its end: once, whatever the disk does, and where a newer attempt owns the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from glci_dist.cluster.elastic import FailureRole
from glci_dist.runs import attempts
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.endings import Endings
from glci_dist.runs.events import AttemptEnded, Completed, Failed, Stopped
from glci_dist.runs.ledger import account
from tests.disks import fill_disk, small_disk
from tests.journal import read_journal


def endings(attempt: Attempt, rank: int = 0) -> Endings:
    return Endings(attempt, rank=rank, host=f"node{rank}")


def test_the_first_reason_counts(tmp_path: Path) -> None:
    mine = endings(attempts.begin(tmp_path, ranks=1))
    mine.fail("the first\n  reason")
    mine.fail("another")
    mine.end(Completed(1))
    (event,) = read_journal(tmp_path)
    assert (event["event"], event["reason"]) == ("failed", "the first reason")
    (found,) = account(tmp_path).attempts
    assert (found.state, found.reason) == ("failed", "the first reason")


def test_a_run_that_ended_well_is_not_made_a_failure_by_what_comes_after(tmp_path: Path) -> None:
    mine = endings(attempts.begin(tmp_path, ranks=1))
    mine.end(Completed(12))
    mine.fail("lost another rank in the last barrier")
    assert [(event["event"], event["step"]) for event in read_journal(tmp_path)] == [("end", 12)]
    assert account(tmp_path).attempts[0].state == "done"


def test_a_lost_rank_s_own_words_are_the_reason(tmp_path: Path) -> None:
    attempt = attempts.begin(tmp_path, ranks=3)
    mine, second, third = (endings(attempt, rank) for rank in range(3))
    second.fail("rank 1 on node1 lost another rank", FailureRole.LOST)
    third.fail("rank 2 on node2: OSError: the disk is gone")
    mine.fail("rank 0 on node0 lost another rank", FailureRole.LOST)
    (event,) = read_journal(tmp_path)
    assert event["reason"] == "rank 0 on node0 lost another rank: rank 2 on node2: OSError: the disk is gone"


def test_a_rank_s_words_are_told_where_rank_0_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = attempts.begin(tmp_path, ranks=2)
    endings(attempt, 0)
    endings(attempt, 1).fail("OSError: the disk is gone")
    monkeypatch.setattr("glci_dist.runs.ledger._QUIET_S", 0.0)
    (found,) = account(tmp_path).attempts
    assert (found.state, found.reason) == ("failed", "rank 1 on node1: OSError: the disk is gone")


def test_an_attempt_that_a_newer_one_took_over_says_so_in_its_own_folder_alone(tmp_path: Path) -> None:
    older = attempts.begin(tmp_path, ranks=1)
    mine = endings(older)
    attempts.begin(tmp_path, ranks=1)
    before = (tmp_path / "journal.jsonl").read_bytes()
    mine.fail(str(older.superseded()))
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    found = account(tmp_path).attempts[0]
    assert found.state == "failed"
    assert "attempt 2" in found.reason


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mib=1) as folder:
        yield folder


@pytest.mark.parametrize(("kind", "state"), [(Failed, "failed"), (Stopped, "stopped"), (Completed, "done")])
def test_a_full_disk_hides_no_ending(disk: Path, kind: type[AttemptEnded], state: str) -> None:
    mine = endings(attempts.begin(disk, ranks=1))
    fill_disk(disk / "filler")
    mine.end(kind(1, "the disk is full"))
    assert read_journal(disk) == []
    (found,) = account(disk).attempts
    assert (found.state, found.reason) == (state, "the disk is full")
