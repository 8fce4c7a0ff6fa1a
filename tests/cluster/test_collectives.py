"""Where a rank is, as the watch sees it."""

from __future__ import annotations

import pytest

from glci_dist.cluster import watchdog
from glci_dist.cluster.collectives import ProgressMark, collective, mark_progress, progress
from glci_dist.cluster.watchdog import describe_missing, missing_ranks
from glci_dist.cluster.world import joined
from glci_dist.config import EngineConfig
from tests.worlds import run_world


def test_a_place_that_was_looked_at_does_not_move_on_with_the_training() -> None:
    with collective("the first"):
        before = progress()
    with collective("the second"):
        now = progress()
    assert (before.name, now.name) == ("the first", "the second")
    assert now.count == before.count + 1
    assert now.since != before.since


def test_what_a_rank_does_by_itself_is_no_hang() -> None:
    with collective("one"):
        assert progress().has_timeout
    assert progress().has_timeout
    mark_progress("a batch", step=3)
    assert not progress().has_timeout
    assert progress().step == 3


def sign(step: int, count: int, signs: float, *, unbounded: bool = False) -> dict[str, object]:
    return {"host": "h", "step": step, "name": "x", "count": count, "signs": signs, "is_unbounded": unbounded}


def test_who_is_missing_is_told_by_two_looks_and_only_the_living_are_waited_for() -> None:
    here = ProgressMark(step=4, name="the heartbeat", count=9)
    signs = [sign(4, 9, 1.0), sign(4, 8, 1.0), sign(4, 8, 1.0, unbounded=True), sign(4, 8, 1.0, unbounded=True), None]
    later = [sign(4, 9, 2.0), sign(4, 8, 2.0), sign(4, 8, 2.0, unbounded=True), sign(4, 8, 1.0, unbounded=True), None]
    behind = missing_ranks(here, 0, signs, later)
    assert [(each.rank, each.is_unbounded) for each in behind] == [(1, False), (2, True), (3, False), (4, False)]
    assert describe_missing(behind[:1]) == "not there: rank 1 on h (alive, in x of step 4)"
    assert "rank 3 on h (no sign of life, last in x of step 4)" in describe_missing(behind)
    assert "rank 4 (no word of it in the launcher's store)" in describe_missing(behind)
    assert describe_missing([]).startswith("every other rank is there too")


def test_only_what_was_begun_patiently_is_waited_for() -> None:
    mark_progress("a save", unbounded=True)
    assert progress().is_unbounded
    with collective("one"):
        assert not progress().is_unbounded
    mark_progress("a batch")
    assert not progress().is_unbounded


def hosts_that_are_known_at_once() -> list[object]:
    """Of each rank, before any watchdog's thread woke up."""
    watchdog._TICK_S = 1000
    with joined(EngineConfig()) as world:
        world.barrier()
        assert world.watchdog is not None
        return [sign and sign["host"] == world.host for sign in world.watchdog._read_all()]


@pytest.mark.distributed
def test_a_rank_that_hangs_as_soon_as_it_is_there_can_be_named() -> None:
    assert run_world(2, hosts_that_are_known_at_once) == [[True, True], [True, True]]
