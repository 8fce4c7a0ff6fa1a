"""Random numbers as a pure function of (seed, purpose, step, slot)."""

from __future__ import annotations

import numpy as np
import pytest

from glci_dist.data.draws import draws, generator, integers, uniform

FROZEN_WORDS = [[12423431297428156556, 11284814906333587346], [8659873549595792206, 13831984962525864903]]
FROZEN_ORDER = [1, 7, 6, 4, 3, 2, 0, 5]


def words(**changes: object) -> np.ndarray:
    asked = {"seed": 7, "purpose": "holes", "step": 3, "slots": range(16), "words": 6, **changes}
    return draws(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [2, 4, 16])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_how_slots_are_split_over_ranks_changes_no_word(parts: int, count: int) -> None:
    share = 16 // parts
    split = [words(slots=range(rank * share, (rank + 1) * share), words=count) for rank in range(parts)]
    assert (np.concatenate(split) == words(words=count)).all()


@pytest.mark.parametrize("change", [{"seed": 8}, {"purpose": "crops"}, {"step": 4}, {"slots": range(16, 32)}])
def test_another_seed_purpose_step_or_slot_gives_other_words(change: dict[str, object]) -> None:
    assert not (words() == words(**change)).any()


def test_the_words_are_the_same_on_every_machine_and_in_every_version() -> None:
    # A run that is resumed after an update of numpy must see the same batches.
    drawn = draws(seed=20170720, purpose="crops", step=1000, slots=range(5, 7), words=2)
    assert drawn.tolist() == FROZEN_WORDS
    assert generator(seed=1, purpose="order of shards", number=2).permutation(8).tolist() == FROZEN_ORDER


def test_no_two_slots_of_many_steps_share_a_word() -> None:
    drawn = np.concatenate([words(step=step) for step in range(200)])
    assert len(np.unique(drawn)) == drawn.size


def test_uniform_numbers_fill_0_to_1_evenly() -> None:
    shares = uniform(words(slots=range(20_000)))
    counts = np.histogram(shares, bins=10, range=(0, 1))[0]
    assert counts.sum() == shares.size
    assert np.abs(counts / shares.size - 0.1).max() < 0.005


def test_integers_reach_both_ends_and_nothing_beyond() -> None:
    drawn = integers(words(slots=range(2_000)), 19, 38)
    assert set(np.unique(drawn)) == set(range(19, 39))


def test_the_greatest_word_gives_the_greatest_integer() -> None:
    most = np.array([2**64 - 1], dtype=np.uint64)
    assert integers(most, 0, 10**9).tolist() == [10**9]
    assert uniform(most)[0] < 1


def test_integers_take_bounds_for_each_slot() -> None:
    high = np.arange(16)[:, None]
    drawn = integers(words(), 0, high)
    assert ((drawn >= 0) & (drawn <= high)).all()
    assert (drawn[0] == 0).all()


def test_each_number_of_a_purpose_has_a_generator_of_its_own() -> None:
    orders = [tuple(generator(seed=1, purpose="order", number=n).permutation(50)) for n in range(20)]
    assert len(set(orders)) == 20
    assert orders[3] == tuple(generator(seed=1, purpose="order", number=3).permutation(50))
