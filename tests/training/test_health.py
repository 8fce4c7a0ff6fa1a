"""What counts as a jump of a gradient's norm, and what is remembered of it."""

from __future__ import annotations

import json
import math

from glci_dist.config import EngineConfig
from glci_dist.training.engines import Update
from glci_dist.training.health import Health
from glci_dist.training.updates import NO_LIMITS, Limits, Measures


def fed(health: Health, *norms: float) -> Health:
    """A health that saw completion updates of these norms applied."""
    for norm in norms:
        assert health.judge(Measures(completion=Update(True, norm)), health.limits()) is None
    return health


def test_the_limit_is_a_multiple_of_the_median_of_the_last_window_of_each_network() -> None:
    health = Health(EngineConfig(spike_factor=4, spike_window=3))
    assert fed(health, 1, 2).limits() == NO_LIMITS
    assert fed(health, 9).limits() == Limits(completion=8, discriminator=math.inf)
    assert fed(health, 9).limits() == Limits(completion=36, discriminator=math.inf)


def test_without_a_factor_nothing_is_a_jump() -> None:
    assert fed(Health(EngineConfig(spike_window=2)), 1, 1, 1).limits() == NO_LIMITS


def test_trouble_names_the_networks_its_kind_and_the_answer_to_that_kind() -> None:
    health = Health(EngineConfig(not_finite="stop", spike="rollback"))
    bad = Measures(completion=Update(False, 50.0), discriminator=Update(True, 1.0))
    spike = health.judge(bad, Limits(completion=10))
    assert spike is not None
    assert (spike.sides, spike.kind, spike.answer, spike.limits) == (("completion",), "spike", "rollback", (10,))
    worse = health.judge(Measures(completion=Update(False, math.nan)), NO_LIMITS)
    assert worse is not None
    assert (worse.kind, worse.answer) == ("not-finite", "stop")
    assert health.skips == 2
    assert fed(health, 1.0).skips == 0


def test_norms_that_were_not_applied_do_not_move_the_limit() -> None:
    health = fed(Health(EngineConfig(spike_factor=2, spike_window=2)), 1, 1)
    health.judge(Measures(completion=Update(False, 1e9)), health.limits())
    assert health.limits().completion == 2


def test_a_network_that_began_anew_is_judged_by_its_own_gradients_alone() -> None:
    health = Health(EngineConfig(spike_factor=2, spike_window=2))
    for norm in (1.0, 3.0):
        both = Measures(completion=Update(True, norm), discriminator=Update(True, norm))
        assert health.judge(both, health.limits()) is None
    health.forget("discriminator")
    assert health.limits() == Limits(completion=4, discriminator=math.inf)


def test_the_state_goes_through_json_to_the_bit() -> None:
    config = EngineConfig(spike_factor=3, spike_window=4)
    health = fed(Health(config), 0.1, 1 / 3, 2e-17, 5.0)
    health.skips = 2
    health.pass_over(7, since=5)
    other = Health(config)
    other.load_state_dict(json.loads(json.dumps(health.state_dict())))
    assert other.limits() == health.limits()
    assert (other.skips, other.passed_over) == (2, [7])


def test_the_steps_passed_over_end_with_the_offending_one_and_begin_no_earlier_than_the_checkpoint() -> None:
    health = Health(EngineConfig(pass_over=3))
    assert list(health.pass_over(10, since=0)) == [8, 9, 10]
    assert list(health.pass_over(21, since=20)) == [20, 21]
    assert health.passed_over == [8, 9, 10, 20, 21]


def test_loading_an_older_state_keeps_what_is_passed_over() -> None:
    health = Health(EngineConfig())
    state = health.state_dict()
    health.pass_over(4, since=0)
    health.load_state_dict(state)
    assert health.passed_over == [4]
