"""Where a rank is, as the watch sees it."""

from __future__ import annotations

from glci_dist.cluster.collectives import Place, begin, collective, place
from glci_dist.cluster.watch import blame, missing


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


def sign(step: int, count: int, signs: float, *, patient: bool = False) -> dict[str, object]:
    return {"host": "h", "step": step, "name": "x", "count": count, "signs": signs, "is_patient": patient}


def test_who_is_missing_is_told_by_two_looks_and_only_the_living_are_waited_for() -> None:
    here = Place(step=4, name="the heartbeat", count=9)
    signs = [sign(4, 9, 1.0), sign(4, 8, 1.0), sign(4, 8, 1.0, patient=True), sign(4, 8, 1.0, patient=True), None]
    later = [sign(4, 9, 2.0), sign(4, 8, 2.0), sign(4, 8, 2.0, patient=True), sign(4, 8, 1.0, patient=True), None]
    behind = missing(here, 0, signs, later)
    assert [(each.rank, each.is_patient) for each in behind] == [(1, False), (2, True), (3, False), (4, False)]
    assert blame(behind[:1]) == "not there: rank 1 on h (alive, in x of step 4)"
    assert "rank 3 on h (no sign of life, last in x of step 4)" in blame(behind)
    assert "rank 4 (no word of it in the launcher's store)" in blame(behind)
    assert blame([]).startswith("every other rank is there too")


def test_only_what_was_begun_patiently_is_waited_for() -> None:
    begin("a save", patient=True)
    assert place().is_patient
    with collective("one"):
        assert not place().is_patient
    begin("a batch")
    assert not place().is_patient
