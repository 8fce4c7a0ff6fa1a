"""The short form of ``make chaos``: a run that is killed in every stage of a save ends as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness import INTERVAL, chaos

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(400)]


def test_a_killed_run_ends_with_the_same_bits_and_used_every_sample_once(faces_shards: str, tmp_path: Path) -> None:
    outcome = chaos(faces_shards, tmp_path, kills=5, steps=(50, 8, 62), seed=1, tell=print)

    assert {kill.where.split()[0] for kill in outcome.kills} >= {"copy", "write", "commit", "delete"}
    assert all(kill.at_step > 0 for kill in outcome.kills[:4])
    assert outcome.differing == []
    assert outcome.samples == outcome.scheduled
    assert outcome.samples.count == 4 * 120
    assert outcome.most_lost <= INTERVAL + 1
