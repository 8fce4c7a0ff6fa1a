"""Which host is named as slow, and when."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from glci_dist.training import stragglers
from glci_dist.training.stragglers import Straggler, StragglerDetector


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stragglers, "time", made)
    return made


def fed(watch: StragglerDetector, clock: Clock, own: Iterable[float], *, seconds: int) -> list[Straggler]:
    """What was named over so many seconds of two steps each."""
    named = []
    for _ in range(2 * seconds):
        clock.now += 0.5
        found = watch.detect(tuple(own))
        if found is not None:
            named.append(found)
    return named


HOSTS = ("a", "a", "b", "b", "c", "c")
EVEN, SLOW_B = (0.1,) * 6, (0.1, 0.1, 0.2, 0.1, 0.1, 0.1)


def test_a_host_that_is_slower_for_long_enough_is_named_once(clock: Clock) -> None:
    watch = StragglerDetector(HOSTS, share=0.25, seconds=10)
    assert fed(watch, clock, EVEN, seconds=30) == []
    assert fed(watch, clock, SLOW_B, seconds=8) == []
    (named,) = fed(watch, clock, SLOW_B, seconds=30)
    assert named.host == "b"
    assert named.ratio == pytest.approx(1.5)
    assert 10 <= named.seconds < 12


def test_one_that_recovers_and_is_slow_again_is_named_again(clock: Clock) -> None:
    watch = StragglerDetector(HOSTS, share=0.25, seconds=5)
    assert len(fed(watch, clock, SLOW_B, seconds=20)) == 1
    assert fed(watch, clock, EVEN, seconds=5) == []
    assert watch.ratio == pytest.approx(1)
    assert len(fed(watch, clock, SLOW_B, seconds=20)) == 1


@pytest.mark.parametrize(("hosts", "share"), [(HOSTS, 0.6), (HOSTS, 0.0), (("a",) * 6, 0.25)])
def test_within_the_share_or_on_one_host_nobody_is_named(clock: Clock, hosts: tuple[str, ...], share: float) -> None:
    assert fed(StragglerDetector(hosts, share=share, seconds=5), clock, SLOW_B, seconds=20) == []
