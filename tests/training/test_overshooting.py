"""Discriminators that overshoot are told from those that learn, and begin anew, slower and alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from glci_dist.config import DoctorConfig, PhaseConfig
from glci_dist.diagnosis.states import State, diagnose_alone, diagnose_window
from glci_dist.training.doctor import Diagnosis, Doctor
from glci_dist.training.phases import Schedule
from tests.training.test_doctor import CHANGES, HEALTHY


def swinging(width: float, margin: float = 0.49) -> list[dict[str, float]]:
    """Discriminators that tell 60% of all photos, and lean to one verdict after the other.

    In every tenth step their logits are upside down.
    """
    ends = ((0.6 + width / 2, 0.6 - width / 2), (0.6 - width / 2, 0.6 + width / 2))
    return [
        {**HEALTHY, "contest/margin": margin if step % 10 else -0.11}
        | {"accuracy/real": ends[step % 2][0], "accuracy/completed": ends[step % 2][1]}
        for step in range(20)
    ]


def test_discriminators_that_overshoot_are_asleep() -> None:
    (finding,) = diagnose_window(swinging(0.41), HEALTHY)
    assert finding.state == State.ASLEEP
    assert "overshoot" in finding.line
    assert "lower phases.*.discriminator_lr" in finding.line
    unmeasured = [{name: value for name, value in each.items() if name != "contest/margin"} for each in swinging(0.41)]
    healthy = {
        "swings little": swinging(0.38),
        "sees, wherever its threshold is": swinging(0.8, margin=0.51),
        "no known margin": unmeasured,
        "leans to one side": [swinging(0.41)[0]] * 20,
        "too few updates": swinging(0.41)[:7],
    }
    assert {name: diagnose_window(window, HEALTHY)[0].state for name, window in healthy.items()} == dict.fromkeys(
        healthy, State.HEALTHY
    )


def test_an_accuracy_that_is_not_finite_is_left_out() -> None:
    window = [{**each, "accuracy/real": math.inf} if step == 5 else each for step, each in enumerate(swinging(0.41))]
    assert diagnose_window(window, HEALTHY)[0].state == State.ASLEEP


def follow(doctor: Doctor, schedule: Schedule, window: list[dict[str, float]], steps: range) -> list[Diagnosis]:
    """What is said while ``window`` is seen again and again, each diagnosis that renews carried out as a run does."""
    found = []
    for step in steps:
        diagnosis = doctor.diagnose(doctor.adjust(schedule.at(step)), window[step % len(window)])
        if diagnosis is not None:
            found.append(diagnosis)
            if doctor.is_reset_due:
                doctor.train_discriminators_alone(step + 1)
    return found


EVERY_SECOND = Schedule(
    {
        "discriminator": PhaseConfig(steps=40, discriminator_every=1, discriminator_lr=0.25),
        "joint": PhaseConfig(steps=200, completion_every=1, discriminator_every=2, discriminator_lr=0.5, alpha=0.25),
    }
)


JOINT = PhaseConfig(steps=200, completion_every=1, discriminator_every=1, discriminator_lr=0.5, alpha=0.25)
"""A contest without a phase 2 before it."""


def test_discriminators_that_overshoot_begin_anew_slower_and_alone() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    assert follow(doctor, EVERY_SECOND, [HEALTHY], range(40)) == []
    (found,) = follow(doctor, EVERY_SECOND, swinging(0.41), range(40, 60))
    assert (found.finding.state, found.finding.overshoots, found.answer) == (State.ASLEEP, True, "balance")
    for step in range(60, 80):
        plan = doctor.adjust(EVERY_SECOND.at(step))
        assert plan.updates_discriminator
        assert not plan.updates_completion
        assert plan.discriminator_lr == 0.5 / 32
    # Those that still overshoot, alone, begin anew once more.
    (found,) = follow(doctor, EVERY_SECOND, swinging(0.41, margin=0.09), range(60, 80))
    assert (found.finding.overshoots, found.answer) == (True, "balance")
    # Those that learn go back into the contest, which is judged anew.
    assert follow(doctor, EVERY_SECOND, [HEALTHY], range(80, 100)) == []
    after = [doctor.adjust(EVERY_SECOND.at(step)) for step in (100, 101)]
    assert [plan.updates_completion for plan in after] == [True, True]
    assert [plan.updates_discriminator for plan in after] == [False, True]
    assert after[0].discriminator_lr == 0.5 / 32**2
    (found,) = follow(doctor, EVERY_SECOND, [HEALTHY], range(100, 140))
    assert (found.finding.state, found.answer) == (State.HEALTHY, "")


def rising(margin: float) -> list[dict[str, float]]:
    """Discriminators whose logits are far apart in the last third of ten steps alone, and swing all along."""
    return [
        {**each, "contest/margin": margin if step % 10 > 5 else each["contest/margin"]}
        for step, each in enumerate(swinging(0.41))
    ]


def test_discriminators_that_overshoot_alone_are_slowed_in_the_contest_too() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=10, asleep="balance"))
    # Young ones may swing, as long as they get somewhere.
    assert follow(doctor, EVERY_SECOND, rising(0.11), range(20)) == []
    found = follow(doctor, EVERY_SECOND, rising(0.09), range(20, 30))
    assert [each.finding.overshoots for each in found] == [True]
    assert doctor.adjust(EVERY_SECOND.at(30)).discriminator_lr == 0.25 / 32
    assert follow(doctor, EVERY_SECOND, [HEALTHY], range(30, 40)) == []
    # The contest's own learning rate is twice that of before, and no reason to begin with more than what held.
    assert doctor.factors(EVERY_SECOND.at(40))["discriminator_lr"] == 0.5 / 32
    # They have a whole window to themselves, wherever the phase ends.
    assert [doctor.adjust(EVERY_SECOND.at(step)).updates_completion for step in (40, 49, 50)] == [False, False, True]


LEARNING = """
72/34/0 16/97/6 91/22/5 41/78/8 56/72/9 53/66/9 81/34/6 44/78/18 66/72/22 66/66/25
47/94/29 97/44/34 28/97/34 84/56/44 62/78/47 62/81/51 94/50/67 47/94/71 97/47/80 56/94/104
"""
"""The first updates of ``recipe=modern``'s discriminators on real faces (64 px, batch 32): the percentage of real
photos that they told, that of completed ones, and 100 times the distance of their logits."""
SLOW = """
72/28/0 0/100/8 100/0/-4 0/100/0 0/100/0 0/100/0 6/97/1 38/69/1 22/75/0 31/78/1
3/94/0 53/59/1 25/84/2 38/78/2 47/59/1 28/69/4 53/91/8 31/81/4 88/19/4 9/97/8
"""
"""The same of ``recipe=paper``, whose Adadelta begins slowly; at the fortieth their logits were 0.5 apart."""
TOO_FAST = """
72/34/0 0/100/10 100/0/-84 100/0/-46 0/100/-54 0/100/-1 97/0/-10 100/0/1 0/100/-6 69/38/2
91/19/10 0/100/19 97/3/2 88/6/5 62/31/-10 47/66/4 25/75/5 84/25/5 34/69/4 38/66/7
"""
"""``recipe=modern``'s at learning rates 100 times as high."""


def measured(updates: str) -> list[dict[str, float]]:
    names = ("accuracy/real", "accuracy/completed", "contest/margin")
    return [
        {name: int(number) / 100 for name, number in zip(names, update.split("/"), strict=True)}
        for update in updates.split()
    ]


@pytest.mark.parametrize(
    ("updates", "state"), [(LEARNING, State.HEALTHY), (SLOW, State.HEALTHY), (TOO_FAST, State.ASLEEP)]
)
def test_young_discriminators_are_told_from_those_that_overshoot(updates: str, state: State) -> None:
    (finding,) = diagnose_alone(measured(updates))
    assert finding.state == state
    assert finding.overshoots == (state == State.ASLEEP)


def test_discriminators_alone_may_tell_all_and_may_tell_nothing() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=10))
    blind = {**HEALTHY, **CHANGES[State.ASLEEP]}
    assert follow(doctor, EVERY_SECOND, [{**HEALTHY, **CHANGES[State.DOMINATES]}], range(20)) == []
    assert follow(doctor, EVERY_SECOND, [blind], range(20, 40)) == []
    assert [each.finding.state for each in follow(doctor, EVERY_SECOND, [blind], range(40, 60))] == [State.ASLEEP]


def test_a_rollback_for_discriminators_that_overshoot_renews_those_that_it_brings_back() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=10, asleep="rollback", dominates="balance"))
    follow(doctor, EVERY_SECOND, swinging(0.41, margin=0.05), range(10))
    saved: Any = json.loads(json.dumps(doctor.state_dict()))
    diagnosis = None
    for step in range(10, 20):
        diagnosis = doctor.diagnose(EVERY_SECOND.at(step), swinging(0.41, margin=0.05)[step % 20])
    assert diagnosis is not None
    assert (diagnosis.finding.overshoots, diagnosis.answer) == (True, "rollback")
    doctor.rewind_state_dict(saved | {"paused": {"discriminator": 30}})
    assert doctor.is_reset_due
    doctor.train_discriminators_alone(10)
    for step in (10, 29):
        plan = doctor.adjust(EVERY_SECOND.at(step))
        assert plan.updates_discriminator
        assert plan.discriminator_lr == 0.25 / 32
    # Nothing that those before did is held against them.
    assert follow(doctor, EVERY_SECOND, rising(0.11), range(10, 30)) == []


def test_another_rollback_does_not_bring_back_what_had_to_begin_anew() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    before: Any = json.loads(json.dumps(doctor.state_dict()))
    (found,) = follow(doctor, EVERY_SECOND, swinging(0.41, margin=0.05), range(20))
    assert found.finding.overshoots
    after: Any = json.loads(json.dumps(doctor.state_dict()))
    doctor.rewind_state_dict(after)
    assert not doctor.is_reset_due
    doctor.rewind_state_dict(before)
    assert doctor.is_reset_due
    # A restart goes on from a checkpoint as it is.
    resumed = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    resumed.load_state_dict(before)
    assert not resumed.is_reset_due


def test_beginning_anew_ends_where_it_does_not_help() -> None:
    """Discriminators that overshoot at their learning rate and tell nothing below it."""
    doctor = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    blind = {**HEALTHY, **CHANGES[State.ASLEEP]}
    contest = Schedule({"joint": replace(JOINT, steps=2000)})
    found: list[Diagnosis] = []
    for step in range(0, 2000, 20):
        is_fast = doctor.adjust(contest.at(step)).discriminator_lr > 0.2
        found += follow(doctor, contest, swinging(0.41, margin=0.05) if is_fast else [blind], range(step, step + 20))
    assert [each.answer for each in found if each.finding.overshoots] == ["balance", "balance"]
    assert not doctor.is_reset_due


def test_young_discriminators_swing_in_a_contest_too() -> None:
    contest = Schedule({"joint": JOINT})
    # Those that begin slowly tell nothing as yet, but not because they overshoot.
    for updates, overshoot in ((LEARNING, []), (SLOW, [False]), (TOO_FAST, [True])):
        window = [{**HEALTHY, **each} for each in measured(updates)]
        found = follow(Doctor(DoctorConfig(window=20, every=10)), contest, window, range(20))
        assert [each.finding.overshoots for each in found] == overshoot


def test_what_chance_does_in_small_batches_is_no_swing() -> None:
    window = swinging(0.9)
    swings = 0.9 * math.sqrt(20 / 19)
    assert math.sqrt(2 / 2) > swings > math.sqrt(2 / 4)
    states = {photos: diagnose_window(window, HEALTHY, photos=photos)[0].state for photos in (0, 2, 4, 64)}
    assert states == {0: State.ASLEEP, 2: State.HEALTHY, 4: State.ASLEEP, 64: State.ASLEEP}


def test_the_time_alone_is_judged_even_where_its_last_step_was_passed_over() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    follow(doctor, EVERY_SECOND, [HEALTHY], range(40))
    follow(doctor, EVERY_SECOND, swinging(0.41), range(40, 60))
    assert follow(doctor, EVERY_SECOND, swinging(0.41, margin=0.09), range(60, 79)) == []
    (found,) = follow(doctor, EVERY_SECOND, swinging(0.41, margin=0.09), range(80, 81))
    assert (found.finding.overshoots, found.answer) == (True, "balance")
    assert doctor.adjust(EVERY_SECOND.at(81)).discriminator_lr == 0.5 / 32**2


def test_what_was_agreed_for_those_that_began_anew_survives_a_checkpoint() -> None:
    anew = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    follow(anew, EVERY_SECOND, [HEALTHY], range(40))
    follow(anew, EVERY_SECOND, swinging(0.41), range(40, 60))
    again = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    again.load_state_dict(json.loads(json.dumps(anew.state_dict())))
    assert again.state_dict() == anew.state_dict()
    plans = [again.adjust(EVERY_SECOND.at(step)) for step in (60, 79, 80)]
    assert plans == [anew.adjust(EVERY_SECOND.at(step)) for step in (60, 79, 80)]
    assert [plan.updates_completion for plan in plans] == [False, False, True]
