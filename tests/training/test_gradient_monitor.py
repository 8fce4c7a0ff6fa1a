"""What counts as a jump of a gradient's norm, and what is remembered of it."""

from __future__ import annotations

import json
import math

from glci_dist.config import EngineConfig
from glci_dist.training.engines import Update
from glci_dist.training.gan_step import NO_NORM_LIMITS, GradientNormLimits, StepMeasurements
from glci_dist.training.gradient_monitor import GradientMonitor


def fed(gradient_monitor: GradientMonitor, *norms: float) -> GradientMonitor:
    """A gradient_monitor that saw completion updates of these norms applied."""
    for norm in norms:
        assert (
            gradient_monitor.check(StepMeasurements(completion=Update(True, norm)), gradient_monitor.limits()) is None
        )
    return gradient_monitor


def test_the_limit_is_a_multiple_of_the_median_of_the_last_window_of_each_network() -> None:
    gradient_monitor = GradientMonitor(EngineConfig(spike_factor=4, spike_window=3))
    assert fed(gradient_monitor, 1, 2).limits() == NO_NORM_LIMITS
    assert fed(gradient_monitor, 9).limits() == GradientNormLimits(completion=8, discriminator=math.inf)
    assert fed(gradient_monitor, 9).limits() == GradientNormLimits(completion=36, discriminator=math.inf)


def test_without_a_factor_nothing_is_a_jump() -> None:
    assert fed(GradientMonitor(EngineConfig(spike_window=2)), 1, 1, 1).limits() == NO_NORM_LIMITS


def test_trouble_names_the_networks_its_kind_and_the_answer_to_that_kind() -> None:
    gradient_monitor = GradientMonitor(EngineConfig(not_finite="stop", spike="rollback"))
    bad = StepMeasurements(completion=Update(False, 50.0), discriminator=Update(True, 1.0))
    spike = gradient_monitor.check(bad, GradientNormLimits(completion=10))
    assert spike is not None
    assert (spike.sides, spike.kind, spike.answer, spike.limits) == (("completion",), "spike", "rollback", (10,))
    worse = gradient_monitor.check(StepMeasurements(completion=Update(False, math.nan)), NO_NORM_LIMITS)
    assert worse is not None
    assert (worse.kind, worse.answer) == ("not-finite", "stop")
    assert gradient_monitor.skips == 2
    assert fed(gradient_monitor, 1.0).skips == 0


def test_norms_that_were_not_applied_do_not_move_the_limit() -> None:
    gradient_monitor = fed(GradientMonitor(EngineConfig(spike_factor=2, spike_window=2)), 1, 1)
    gradient_monitor.check(StepMeasurements(completion=Update(False, 1e9)), gradient_monitor.limits())
    assert gradient_monitor.limits().completion == 2


def test_a_network_that_began_anew_is_judged_by_its_own_gradients_alone() -> None:
    gradient_monitor = GradientMonitor(EngineConfig(spike_factor=2, spike_window=2))
    for norm in (1.0, 3.0):
        both = StepMeasurements(completion=Update(True, norm), discriminator=Update(True, norm))
        assert gradient_monitor.check(both, gradient_monitor.limits()) is None
    gradient_monitor.reset("discriminator")
    assert gradient_monitor.limits() == GradientNormLimits(completion=4, discriminator=math.inf)


def test_the_state_goes_through_json_to_the_bit() -> None:
    config = EngineConfig(spike_factor=3, spike_window=4)
    gradient_monitor = fed(GradientMonitor(config), 0.1, 1 / 3, 2e-17, 5.0)
    gradient_monitor.skips = 2
    gradient_monitor.skip(7, since=5)
    other = GradientMonitor(config)
    other.load_state_dict(json.loads(json.dumps(gradient_monitor.state_dict())))
    assert other.limits() == gradient_monitor.limits()
    assert (other.skips, other.skipped_steps) == (2, [7])


def test_the_steps_passed_over_end_with_the_offending_one_and_begin_no_earlier_than_the_checkpoint() -> None:
    gradient_monitor = GradientMonitor(EngineConfig(pass_over=3))
    assert list(gradient_monitor.skip(10, since=0)) == [8, 9, 10]
    assert list(gradient_monitor.skip(21, since=20)) == [20, 21]
    assert gradient_monitor.skipped_steps == [8, 9, 10, 20, 21]


def test_loading_an_older_state_keeps_what_is_passed_over() -> None:
    gradient_monitor = GradientMonitor(EngineConfig())
    state = gradient_monitor.state_dict()
    gradient_monitor.skip(4, since=0)
    gradient_monitor.load_state_dict(state)
    assert gradient_monitor.skipped_steps == [4]
