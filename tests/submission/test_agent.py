"""When crashed workers are started again, and when not."""

from __future__ import annotations

import pytest

from glci_dist.slurm.agent import Bounds, Crash

BOUNDS = Bounds(restarts=4, window_s=100, same_step=3)


def crashes(*at: tuple[float, int]) -> list[Crash]:
    return [Crash(time, step, "it broke", (1,)) for time, step in at]


@pytest.mark.parametrize(
    ("at", "verdict"),
    [
        ([(0, 7)], None),
        ([(0, 7), (9, 7)], None),
        ([(0, 7), (9, 7), (18, 7)], "it crashed 3 times in a row in step 7"),
        ([(0, 7), (9, 8), (18, 7), (27, 7)], None),
        # In the same step, however long it took to come there.
        ([(0, 7), (9000, 7), (18000, 7)], "it crashed 3 times in a row in step 7"),
        ([(0, -1), (9, -1), (18, -1)], "it crashed 3 times in a row before its first step"),
        ([(0, 1), (9, 2), (18, 3), (27, 4)], None),
        ([(0, 1), (9, 2), (18, 3), (27, 4), (36, 5)], "it crashed 5 times within 100 s (cluster.restarts=4)"),
        ([(0, 1), (50, 2), (100, 3), (150, 4), (200, 5)], None),
    ],
)
def test_workers_are_started_again_unless_it_is_in_vain(at: list[tuple[float, int]], verdict: str | None) -> None:
    assert BOUNDS.verdict(crashes(*at)) == verdict
