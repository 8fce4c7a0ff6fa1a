"""The doctor names each state by its definition, keeps quiet in health, and changes what its answers say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from glci_dist.config import DoctorConfig, PhaseConfig
from glci_dist.diagnosis.states import State, judge, judge_alone, summary
from glci_dist.training.doctor import Diagnosis, Doctor
from glci_dist.training.phases import Schedule

HEALTHY: dict[str, float] = {
    "loss/reconstruction": 0.01,
    "loss/adversarial": 1.5,
    "loss/real": 0.4,
    "loss/completed": 0.4,
    "accuracy/real": 0.8,
    "accuracy/completed": 0.85,
    "contest/margin": 2.0,
    "contest/diversity": 0.04,
    "contest/diversity_of_photos": 0.05,
    "contest/lattice": 1e-6,
    "contest/lattice_of_photos": 2e-6,
    "gradient_at_output/reconstruction": 1e-3,
    "gradient_at_output/adversarial": 5e-4,
    "phase/alpha": 1e-3,
}
CHANGES: dict[State, dict[str, float]] = {
    State.DIVERGING: {"loss/reconstruction": 0.0151},
    State.COLLAPSE: {"contest/diversity": 0.019},
    State.CHECKERBOARD: {"contest/lattice": 4.1e-6},
    State.NO_CONTEST: {"gradient_at_output/adversarial": 1.9e-5},
    State.DOMINATES: {"accuracy/real": 0.96, "accuracy/completed": 0.96},
    State.ASLEEP: {"accuracy/real": 0.3, "accuracy/completed": 0.75, "contest/margin": 0.05},
}
SCHEDULE = Schedule(
    {
        "completion": PhaseConfig(steps=5, completion_every=1),
        "joint": PhaseConfig(steps=200, completion_every=1, discriminator_every=1, discriminator_lr=0.5, alpha=0.25),
    }
)


@pytest.mark.parametrize("state", CHANGES)
def test_a_state_is_named_where_its_limit_is_passed(state: State) -> None:
    (finding,) = judge([{**HEALTHY, **CHANGES[state]}] * 20, HEALTHY)
    assert finding.state == state
    assert finding.evidence[0] in finding.line
    assert finding.advice in finding.line


@pytest.mark.parametrize(
    "change",
    [
        {"loss/reconstruction": 0.0149},
        {"contest/diversity": 0.021},
        {"contest/lattice": 3.9e-6},
        {"gradient_at_output/adversarial": 2.1e-5},
        {"accuracy/real": 0.99, "accuracy/completed": 0.94},
        {"accuracy/real": 0.97, "accuracy/completed": 0.08},
        {"accuracy/real": 0.08, "accuracy/completed": 0.97},
        {"accuracy/real": 0.5, "accuracy/completed": 0.5, "contest/margin": 0.2},
        {"accuracy/real": 0.57, "accuracy/completed": 0.57, "contest/margin": 0.01},
    ],
)
def test_what_stays_within_the_limits_is_healthy(change: dict[str, float]) -> None:
    (finding,) = judge([{**HEALTHY, **change}] * 20, HEALTHY)
    assert finding.state == State.HEALTHY


def test_without_gradients_no_contest_is_told_by_losses_that_fall_together() -> None:
    known = {name: value for name, value in HEALTHY.items() if not name.startswith(("gradient_at_output", "phase"))}
    falling = [
        {**known, **{name: known[name] * 0.97**step for name in ("loss/adversarial", "loss/real", "loss/completed")}}
        for step in range(20)
    ]
    assert [finding.state for finding in judge(falling, known)] == [State.NO_CONTEST]
    fighting = [{**each, "loss/adversarial": 1.5 + 0.1 * step} for step, each in enumerate(falling)]
    assert [finding.state for finding in judge(fighting, known)] == [State.HEALTHY]


def _swinging(width: float, margin: float = 0.49) -> list[dict[str, float]]:
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
    (finding,) = judge(_swinging(0.41), HEALTHY)
    assert finding.state == State.ASLEEP
    assert "overshoot" in finding.line
    assert "lower phases.*.discriminator_lr" in finding.line
    unmeasured = [{name: value for name, value in each.items() if name != "contest/margin"} for each in _swinging(0.41)]
    healthy = {
        "swings little": _swinging(0.38),
        "sees, wherever its threshold is": _swinging(0.8, margin=0.51),
        "no known margin": unmeasured,
        "leans to one side": [_swinging(0.41)[0]] * 20,
        "too few updates": _swinging(0.41)[:7],
    }
    assert {name: judge(window, HEALTHY)[0].state for name, window in healthy.items()} == dict.fromkeys(
        healthy, State.HEALTHY
    )


def follow(doctor: Doctor, schedule: Schedule, window: list[dict[str, float]], steps: range) -> list[Diagnosis]:
    """What is said while ``window`` is seen again and again, each diagnosis that renews carried out as a run does."""
    found = []
    for step in steps:
        diagnosis = doctor.see(doctor.adjusted(schedule.at(step)), window[step % len(window)])
        if diagnosis is not None:
            found.append(diagnosis)
            if doctor.is_renewal_due:
                doctor.let_learn_alone(step + 1)
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
    (found,) = follow(doctor, EVERY_SECOND, _swinging(0.41), range(40, 60))
    assert (found.finding.state, found.finding.overshoots, found.answer) == (State.ASLEEP, True, "balance")
    for step in range(60, 80):
        moment = doctor.adjusted(EVERY_SECOND.at(step))
        assert moment.updates_discriminator
        assert not moment.updates_completion
        assert moment.discriminator_lr == 0.5 / 32
    # Those that still overshoot, alone, begin anew once more.
    (found,) = follow(doctor, EVERY_SECOND, _swinging(0.41, margin=0.09), range(60, 80))
    assert (found.finding.overshoots, found.answer) == (True, "balance")
    # Those that learn go back into the contest, which is judged anew.
    assert follow(doctor, EVERY_SECOND, [HEALTHY], range(80, 100)) == []
    after = [doctor.adjusted(EVERY_SECOND.at(step)) for step in (100, 101)]
    assert [moment.updates_completion for moment in after] == [True, True]
    assert [moment.updates_discriminator for moment in after] == [False, True]
    assert after[0].discriminator_lr == 0.5 / 32**2
    (found,) = follow(doctor, EVERY_SECOND, [HEALTHY], range(100, 140))
    assert (found.finding.state, found.answer) == (State.HEALTHY, "")


def rising(margin: float) -> list[dict[str, float]]:
    """Discriminators whose logits are far apart in the last third of ten steps alone, and swing all along."""
    return [
        {**each, "contest/margin": margin if step % 10 > 5 else each["contest/margin"]}
        for step, each in enumerate(_swinging(0.41))
    ]


def test_discriminators_that_overshoot_alone_are_slowed_in_the_contest_too() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=10, asleep="balance"))
    # Young ones may swing, as long as they get somewhere.
    assert follow(doctor, EVERY_SECOND, rising(0.11), range(20)) == []
    found = follow(doctor, EVERY_SECOND, rising(0.09), range(20, 30))
    assert [each.finding.overshoots for each in found] == [True]
    assert doctor.adjusted(EVERY_SECOND.at(30)).discriminator_lr == 0.25 / 32
    assert follow(doctor, EVERY_SECOND, [HEALTHY], range(30, 40)) == []
    # The contest's own learning rate is twice that of before, and no reason to begin with more than what held.
    assert doctor.factors(EVERY_SECOND.at(40))["discriminator_lr"] == 0.5 / 32
    # They have a whole window to themselves, wherever the phase ends.
    assert [doctor.adjusted(EVERY_SECOND.at(step)).updates_completion for step in (40, 49, 50)] == [False, False, True]


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
    (finding,) = judge_alone(measured(updates))
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
    follow(doctor, EVERY_SECOND, _swinging(0.41, margin=0.05), range(10))
    saved: Any = json.loads(json.dumps(doctor.state_dict()))
    diagnosis = None
    for step in range(10, 20):
        diagnosis = doctor.see(EVERY_SECOND.at(step), _swinging(0.41, margin=0.05)[step % 20])
    assert diagnosis is not None
    assert (diagnosis.finding.overshoots, diagnosis.answer) == (True, "rollback")
    doctor.load(saved | {"paused": {"discriminator": 30}}, keep_factors=True)
    assert doctor.is_renewal_due
    doctor.let_learn_alone(10)
    for step in (10, 29):
        moment = doctor.adjusted(EVERY_SECOND.at(step))
        assert moment.updates_discriminator
        assert moment.discriminator_lr == 0.25 / 32
    # Nothing that those before did is held against them.
    assert follow(doctor, EVERY_SECOND, rising(0.11), range(10, 30)) == []


def test_another_rollback_does_not_bring_back_what_had_to_begin_anew() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    before: Any = json.loads(json.dumps(doctor.state_dict()))
    (found,) = follow(doctor, EVERY_SECOND, _swinging(0.41, margin=0.05), range(20))
    assert found.finding.overshoots
    after: Any = json.loads(json.dumps(doctor.state_dict()))
    doctor.load(after, keep_factors=True)
    assert not doctor.is_renewal_due
    doctor.load(before, keep_factors=True)
    assert doctor.is_renewal_due
    # A restart goes on from a checkpoint as it is.
    resumed = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    resumed.load(before)
    assert not resumed.is_renewal_due


def test_beginning_anew_ends_where_it_does_not_help() -> None:
    """Discriminators that overshoot at their learning rate and tell nothing below it."""
    doctor = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    blind = {**HEALTHY, **CHANGES[State.ASLEEP]}
    contest = Schedule({"joint": replace(JOINT, steps=2000)})
    found: list[Diagnosis] = []
    for step in range(0, 2000, 20):
        is_fast = doctor.adjusted(contest.at(step)).discriminator_lr > 0.2
        found += follow(doctor, contest, _swinging(0.41, margin=0.05) if is_fast else [blind], range(step, step + 20))
    assert [each.answer for each in found if each.finding.overshoots] == ["balance", "balance"]
    assert not doctor.is_renewal_due


def test_young_discriminators_swing_in_a_contest_too() -> None:
    contest = Schedule({"joint": JOINT})
    # Those that begin slowly tell nothing as yet, but not because they overshoot.
    for updates, overshoot in ((LEARNING, []), (SLOW, [False]), (TOO_FAST, [True])):
        window = [{**HEALTHY, **each} for each in measured(updates)]
        found = follow(Doctor(DoctorConfig(window=20, every=10)), contest, window, range(20))
        assert [each.finding.overshoots for each in found] == overshoot


def test_what_chance_does_in_small_batches_is_no_swing() -> None:
    window = _swinging(0.9)
    swings = 0.9 * math.sqrt(20 / 19)
    assert math.sqrt(2 / 2) > swings > math.sqrt(2 / 4)
    states = {photos: judge(window, HEALTHY, photos=photos)[0].state for photos in (0, 2, 4, 64)}
    assert states == {0: State.ASLEEP, 2: State.HEALTHY, 4: State.ASLEEP, 64: State.ASLEEP}


def test_the_time_alone_is_judged_even_where_its_last_step_was_passed_over() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    follow(doctor, EVERY_SECOND, [HEALTHY], range(40))
    follow(doctor, EVERY_SECOND, _swinging(0.41), range(40, 60))
    assert follow(doctor, EVERY_SECOND, _swinging(0.41, margin=0.09), range(60, 79)) == []
    (found,) = follow(doctor, EVERY_SECOND, _swinging(0.41, margin=0.09), range(80, 81))
    assert (found.finding.overshoots, found.answer) == (True, "balance")
    assert doctor.adjusted(EVERY_SECOND.at(81)).discriminator_lr == 0.5 / 32**2


@pytest.mark.parametrize(("real", "completed", "words"), [(0.96, 0.05, "nearly all"), (0.05, 0.96, "hardly any")])
def test_discriminators_that_call_all_photos_the_same_are_asleep(real: float, completed: float, words: str) -> None:
    leaning = {**HEALTHY, "accuracy/real": real, "accuracy/completed": completed}
    (finding,) = judge([leaning] * 20, HEALTHY)
    assert finding.state == State.ASLEEP
    assert f"{words} photos real" in finding.line
    assert not finding.overshoots


def test_several_states_are_told_in_their_order() -> None:
    both = {**HEALTHY, **CHANGES[State.DOMINATES], **CHANGES[State.DIVERGING]}
    assert [finding.state for finding in judge([both] * 20, HEALTHY)] == [State.DIVERGING, State.DOMINATES]


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_diverging(name: str, value: float) -> None:
    (finding,) = judge([{**HEALTHY, name: value}], HEALTHY)
    assert finding.state == State.DIVERGING
    assert name in finding.evidence[0]


def test_a_beginning_of_zero_ends_no_diagnosis() -> None:
    (finding,) = judge([HEALTHY], {**HEALTHY, "loss/reconstruction": 0.0, "contest/diversity_of_photos": 0.0})
    assert finding.state == State.HEALTHY


def test_an_adversarial_loss_of_no_weight_is_no_contest() -> None:
    without = {name: value for name, value in HEALTHY.items() if not name.startswith("gradient_at_output")}
    assert judge([{**without, "phase/alpha": 0.0}], HEALTHY)[0].state == State.NO_CONTEST


def test_a_single_odd_step_moves_no_median() -> None:
    steps = [HEALTHY] * 9 + [{**HEALTHY, "accuracy/real": 1.0, "loss/reconstruction": 1e9}]
    assert summary(steps)["loss/reconstruction"] == 0.01


def told(doctor: Doctor, scalars: dict[str, float], steps: range) -> list[tuple[int, Diagnosis]]:
    found = []
    for step in steps:
        diagnosis = doctor.see(doctor.adjusted(SCHEDULE.at(step)), scalars)
        if diagnosis is not None:
            found.append((step, diagnosis))
    return found


def test_a_state_is_told_once_and_so_is_health() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=10))
    ill = {**HEALTHY, **CHANGES[State.DOMINATES]}
    assert told(doctor, HEALTHY, range(60)) == []
    ((step, first),) = told(doctor, ill, range(60, 100))
    assert (first.finding.state, first.answer) == (State.DOMINATES, "warn")
    # As soon as it holds for most of the window, at the next diagnosis.
    assert step == 74
    ((step, well),) = told(doctor, HEALTHY, range(100, 140))
    assert (well.finding.state, well.answer) == (State.HEALTHY, "")
    assert doctor.factors(SCHEDULE.at(60)) == {"alpha": 1.0, "discriminator_lr": 1.0}


def test_a_phase_of_completion_alone_is_not_judged() -> None:
    doctor = Doctor(DoctorConfig(window=2, every=1))
    assert told(doctor, {**HEALTHY, **CHANGES[State.DOMINATES]}, range(5)) == []


def test_balancing_a_discriminator_that_dominates_pauses_and_slows_it() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=10, dominates="balance"))
    ill = {**HEALTHY, **CHANGES[State.DOMINATES]}
    ((step, found),) = told(doctor, ill, range(5, 26))
    assert (step, found.answer) == (24, "balance")
    paused = [doctor.adjusted(SCHEDULE.at(each)).updates_discriminator for each in range(25, 37)]
    assert paused == [False] * 10 + [True] * 2
    assert doctor.adjusted(SCHEDULE.at(40)).discriminator_lr == 0.5 / 4
    assert doctor.adjusted(SCHEDULE.at(40)).updates_completion
    # The window begins anew: nothing of what was measured before the answer, or in the pause, counts.
    assert [step for step, _ in told(doctor, ill, range(25, 56))] == [54]
    assert doctor.adjusted(SCHEDULE.at(70)).discriminator_lr == 0.5 / 16


def test_a_side_that_is_paused_is_not_called_healthy() -> None:
    doctor = Doctor(DoctorConfig(window=10, every=10, dominates="balance"))
    ill = {**HEALTHY, **CHANGES[State.DOMINATES]}
    found = []
    for step in range(5, 100):
        moment = doctor.adjusted(SCHEDULE.at(step))
        scalars = ill if moment.updates_discriminator else {"loss/reconstruction": 0.01}
        diagnosis = doctor.see(moment, scalars)
        found += [diagnosis.finding.state] if diagnosis is not None else []
    assert set(found) == {State.DOMINATES}


def test_steps_that_measured_nothing_or_not_the_completions_are_no_beginning() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=10))
    only_judged = {"loss/real": 0.4, "loss/completed": 0.4, "accuracy/real": 0.8, "accuracy/completed": 0.85}
    told(doctor, only_judged, range(5, 30))
    told(doctor, {}, range(30, 40))
    told(doctor, HEALTHY, range(40, 60))
    ((_, found),) = told(doctor, {**HEALTHY, **CHANGES[State.DIVERGING]}, range(60, 90))
    assert found.finding.state == State.DIVERGING


def test_what_was_handed_to_a_checkpoint_stays_as_it_was() -> None:
    """It is written while the run goes on."""
    doctor = Doctor(DoctorConfig(window=20, every=10, dominates="balance"))
    ill = {**HEALTHY, **CHANGES[State.DOMINATES]}
    told(doctor, ill, range(5, 12))
    states = [doctor.state_dict()]
    told(doctor, ill, range(12, 31))
    states.append(doctor.state_dict())
    before = json.dumps(states)
    told(doctor, ill, range(31, 100))
    assert json.dumps(states) == before


def test_a_rollback_changes_what_balancing_would_and_pauses_nobody() -> None:
    doctor = Doctor(DoctorConfig(window=20, every=10, dominates="rollback"))
    ill = {**HEALTHY, **CHANGES[State.DOMINATES]}
    ((step, found),) = told(doctor, ill, range(5, 26))
    assert (step, found.answer) == (24, "rollback")
    after = doctor.adjusted(SCHEDULE.at(25))
    assert after.discriminator_lr == 0.5 / 4
    assert after.updates_discriminator


@pytest.mark.parametrize(
    ("state", "alpha", "discriminator_lr", "paused"),
    [
        (State.DIVERGING, 0.125, 0.5, None),
        (State.COLLAPSE, 0.125, 0.5, None),
        (State.CHECKERBOARD, 0.125, 0.5, None),
        (State.NO_CONTEST, 0.25 * 0.1 / 0.019, 0.5, None),
        (State.ASLEEP, 0.25, 1.0, "completion"),
    ],
)
def test_balancing_weakens_the_stronger_side(
    state: State, alpha: float, discriminator_lr: float, paused: str | None
) -> None:
    doctor = Doctor(DoctorConfig(**{"window": 20, "every": 10, state.name.lower(): "balance"}))  # type: ignore[arg-type]
    told(doctor, HEALTHY, range(5, 15))
    told(doctor, {**HEALTHY, **CHANGES[state]}, range(15, 36))
    after = doctor.adjusted(SCHEDULE.at(40))
    assert after.alpha == pytest.approx(alpha)
    assert after.discriminator_lr == discriminator_lr
    assert after.updates_completion == (paused != "completion")


def test_what_the_doctor_knows_survives_a_checkpoint() -> None:
    config = DoctorConfig(window=20, every=10, dominates="balance")
    ill = {**HEALTHY, **CHANGES[State.DOMINATES]}
    whole, first = Doctor(config), Doctor(config)
    told(whole, ill, range(5, 31))
    told(first, ill, range(5, 31))
    state: Any = json.loads(json.dumps(first.state_dict()))
    second = Doctor(config)
    second.load(state)
    assert told(second, ill, range(31, 80)) == told(whole, ill, range(31, 80))
    assert second.factors(SCHEDULE.at(60)) == whole.factors(SCHEDULE.at(60))
    # So does what was agreed for discriminators that began anew.
    anew = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    follow(anew, EVERY_SECOND, [HEALTHY], range(40))
    follow(anew, EVERY_SECOND, _swinging(0.41), range(40, 60))
    again = Doctor(DoctorConfig(window=20, every=20, asleep="balance"))
    again.load(json.loads(json.dumps(anew.state_dict())))
    assert again.state_dict() == anew.state_dict()
    moments = [again.adjusted(EVERY_SECOND.at(step)) for step in (60, 79, 80)]
    assert moments == [anew.adjusted(EVERY_SECOND.at(step)) for step in (60, 79, 80)]
    assert [moment.updates_completion for moment in moments] == [False, False, True]
    # A rollback brings back what was measured, and not the weights that it was to be rid of.
    second.load(state, keep_factors=True)
    moment = SCHEDULE.at(60)
    assert second.factors(moment) == whole.factors(moment) != first.factors(moment)
    before = json.loads(json.dumps(Doctor(config).state_dict()))
    second.load(before, keep_factors=True)
    assert second.adjusted(moment).discriminator_lr == whole.adjusted(moment).discriminator_lr
