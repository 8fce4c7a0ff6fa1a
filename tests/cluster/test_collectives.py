"""Where a rank is, as the watch sees it."""

from __future__ import annotations

from glci_dist.cluster.collectives import begin, collective, place


def test_a_place_that_was_looked_at_does_not_move_on_with_the_training() -> None:
    with collective("the first"):
        before = place()
    with collective("the second"):
        now = place()
    assert (before.name, now.name) == ("the first", "the second")
    assert now.count == before.count + 1
    assert now.since != before.since


def test_what_a_rank_does_by_itself_is_no_hang() -> None:
    with collective("one"):
        assert place().is_bounded
    assert place().is_bounded
    begin("a batch", step=3)
    assert not place().is_bounded
    assert place().step == 3
