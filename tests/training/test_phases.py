"""A step's phase, updates and learning rates are a pure function of the configuration and the step."""

from __future__ import annotations

import math

import pytest

from glci_dist import compose
from glci_dist.config import PhaseConfig
from glci_dist.training.phases import Schedule, StepPlan, learning_rate_factor

PAPER = {
    "completion": PhaseConfig(steps=5, completion_every=1, completion_lr=1.0),
    "left out": PhaseConfig(steps=0, completion_every=1),
    "discriminator": PhaseConfig(steps=3, discriminator_every=1, discriminator_lr=2.0),
    "joint": PhaseConfig(
        steps=4, completion_every=1, discriminator_every=1, completion_lr=3.0, discriminator_lr=4.0, alpha=4e-4
    ),
}


def moments(phases: dict[str, PhaseConfig]) -> list[StepPlan]:
    schedule = Schedule(phases)
    return [schedule.at(step) for step in range(schedule.steps)]


def test_phases_follow_each_other_and_one_of_0_steps_is_left_out() -> None:
    found = moments(PAPER)

    assert [m.step for m in found] == list(range(12))
    assert [m.phase for m in found] == 5 * ["completion"] + 3 * ["discriminator"] + 4 * ["joint"]
    assert [m.phase_number for m in found] == 5 * [0] + 3 * [1] + 4 * [2]
    assert [m.phase_step for m in found] == [*range(5), *range(3), *range(4)]
    assert [m.step for m in found if m.ends_phase] == [4, 7, 11]


def test_each_phase_updates_its_networks_with_its_rates_and_weights() -> None:
    found = moments(PAPER)

    assert [(m.updates_completion, m.updates_discriminator) for m in found] == (
        5 * [(True, False)] + 3 * [(False, True)] + 4 * [(True, True)]
    )
    assert [(m.completion_lr, m.discriminator_lr) for m in found] == 5 * [(1, 0)] + 3 * [(0, 2)] + 4 * [(3, 4)]
    assert [m.alpha for m in found] == 8 * [0] + 4 * [4e-4]


def test_pixels_count_each_phases_own_photos() -> None:
    phases = {
        "coarse": PhaseConfig(steps=3, size=2, batch=4),
        "left out": PhaseConfig(steps=0),
        "fine": PhaseConfig(steps=2),
    }
    schedule = Schedule(phases, global_batch=1, size=10)

    assert schedule.pixels() == 3 * 4 * 2 * 2 + 2 * 100
    assert schedule.pixels(2, 4) == 4 * 2 * 2 + 100
    assert schedule.pixels(5) == 0
    assert (schedule.at(0).size, schedule.at(3).size) == (2, 10)


def test_a_moment_does_not_depend_on_the_moments_before_it() -> None:
    schedule = Schedule(PAPER)
    backwards = [schedule.at(step) for step in reversed(range(schedule.steps))]

    assert backwards[::-1] == moments(PAPER)


@pytest.mark.parametrize("step", [-1, 12, 10**9])
def test_a_step_outside_the_schedule_is_an_error(step: int) -> None:
    with pytest.raises(IndexError, match=f"step {step} lies outside a schedule of 12 steps"):
        Schedule(PAPER).at(step)


@pytest.mark.parametrize(("completion_every", "discriminator_every"), [(1, 3), (2, 1), (5, 2)])
def test_either_network_may_be_updated_more_often_than_the_other(
    completion_every: int, discriminator_every: int
) -> None:
    phase = PhaseConfig(steps=30, completion_every=completion_every, discriminator_every=discriminator_every)
    found = moments({"before": PhaseConfig(steps=7, completion_every=1), "joint": phase})[7:]

    assert [m.phase_step for m in found if m.updates_completion] == [*range(completion_every - 1, 30, completion_every)]
    due = [m.phase_step for m in found if m.updates_discriminator]
    assert due == [*range(discriminator_every - 1, 30, discriminator_every)]


def factors(**settings: object) -> list[float]:
    phase = PhaseConfig(steps=11, completion_every=1, **settings)  # type: ignore[arg-type]
    return [learning_rate_factor(phase, within) for within in range(phase.steps)]


def test_learning_rates_fall_as_the_schedule_says() -> None:
    share = [step / 10 for step in range(11)]

    assert factors() == [1.0] * 11
    assert factors(lr_schedule="linear", lr_final=0.2) == pytest.approx([1 - 0.8 * s for s in share])
    cosine = [0.2 + 0.8 * (1 + math.cos(math.pi * s)) / 2 for s in share]
    assert factors(lr_schedule="cosine", lr_final=0.2) == pytest.approx(cosine)
    assert factors(lr_schedule="linear")[-1] == 0


def test_learning_rates_rise_in_the_warm_up_and_are_never_0_in_it() -> None:
    assert factors(lr_warmup=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    falling = factors(lr_schedule="linear")
    warm = factors(lr_schedule="linear", lr_warmup=2)
    assert warm == pytest.approx([falling[0] / 2, *falling[1:]])


def test_a_phase_of_one_step_has_its_full_learning_rate() -> None:
    phase = PhaseConfig(steps=1, completion_every=1, lr_schedule="cosine")

    assert learning_rate_factor(phase, 0) == 1


@pytest.mark.parametrize("recipe", ["modern", "paper"])
def test_both_recipes_train_one_then_the_other_then_both_and_modern_begins_with_small_photos(recipe: str) -> None:
    config = compose.load([f"recipe={recipe}", "data.shards=x"])
    schedule = Schedule(config.phases)
    ends = [step for step in range(schedule.steps) if schedule.at(step).ends_phase]

    assert [(schedule.at(end).updates_completion, schedule.at(end).updates_discriminator) for end in ends] == [
        *([(True, False)] if recipe == "modern" else []),
        (True, False),
        (False, True),
        (True, True),
    ]
    assert [schedule.at(end).alpha for end in ends] == [*([0] if recipe == "modern" else []), 0, 0, 4e-4]
