"""The doctor names each state by its definition, keeps quiet in gradient_monitor, and changes what its answers say."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from glci_dist.config import DoctorConfig, PhaseConfig
from glci_dist.diagnosis.states import State, diagnose_window, summary
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
    (finding,) = diagnose_window([{**HEALTHY, **CHANGES[state]}] * 20, HEALTHY)
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
    (finding,) = diagnose_window([{**HEALTHY, **change}] * 20, HEALTHY)
    assert finding.state == State.HEALTHY


def test_without_gradients_no_contest_is_told_by_losses_that_fall_together() -> None:
    known = {name: value for name, value in HEALTHY.items() if not name.startswith(("gradient_at_output", "phase"))}
    falling = [
        {**known, **{name: known[name] * 0.97**step for name in ("loss/adversarial", "loss/real", "loss/completed")}}
        for step in range(20)
    ]
    assert [finding.state for finding in diagnose_window(falling, known)] == [State.NO_CONTEST]
    fighting = [{**each, "loss/adversarial": 1.5 + 0.1 * step} for step, each in enumerate(falling)]
    assert [finding.state for finding in diagnose_window(fighting, known)] == [State.HEALTHY]


@pytest.mark.parametrize(("real", "completed", "words"), [(0.96, 0.05, "nearly all"), (0.05, 0.96, "hardly any")])
def test_discriminators_that_call_all_photos_the_same_are_asleep(real: float, completed: float, words: str) -> None:
    leaning = {**HEALTHY, "accuracy/real": real, "accuracy/completed": completed}
    (finding,) = diagnose_window([leaning] * 20, HEALTHY)
    assert finding.state == State.ASLEEP
    assert f"{words} photos real" in finding.line
    assert not finding.overshoots


def test_several_states_are_told_in_their_order() -> None:
    both = {**HEALTHY, **CHANGES[State.DOMINATES], **CHANGES[State.DIVERGING]}
    assert [finding.state for finding in diagnose_window([both] * 20, HEALTHY)] == [State.DIVERGING, State.DOMINATES]


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_diverging(name: str, value: float) -> None:
    (finding,) = diagnose_window([{**HEALTHY, name: value}], HEALTHY)
    assert finding.state == State.DIVERGING
    assert name in finding.evidence[0]


def test_a_beginning_of_zero_ends_no_diagnosis() -> None:
    (finding,) = diagnose_window([HEALTHY], {**HEALTHY, "loss/reconstruction": 0.0, "contest/diversity_of_photos": 0.0})
    assert finding.state == State.HEALTHY


def test_an_adversarial_loss_of_no_weight_is_no_contest() -> None:
    without = {name: value for name, value in HEALTHY.items() if not name.startswith("gradient_at_output")}
    assert diagnose_window([{**without, "phase/alpha": 0.0}], HEALTHY)[0].state == State.NO_CONTEST


def test_a_single_odd_step_moves_no_median() -> None:
    steps = [HEALTHY] * 9 + [{**HEALTHY, "accuracy/real": 1.0, "loss/reconstruction": 1e9}]
    assert summary(steps)["loss/reconstruction"] == 0.01


def told(doctor: Doctor, scalars: dict[str, float], steps: range) -> list[tuple[int, Diagnosis]]:
    found = []
    for step in steps:
        diagnosis = doctor.diagnose(doctor.adjust(SCHEDULE.at(step)), scalars)
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
    paused = [doctor.adjust(SCHEDULE.at(each)).updates_discriminator for each in range(25, 37)]
    assert paused == [False] * 10 + [True] * 2
    assert doctor.adjust(SCHEDULE.at(40)).discriminator_lr == 0.5 / 4
    assert doctor.adjust(SCHEDULE.at(40)).updates_completion
    # The window begins anew: nothing of what was measured before the answer, or in the pause, counts.
    assert [step for step, _ in told(doctor, ill, range(25, 56))] == [54]
    assert doctor.adjust(SCHEDULE.at(70)).discriminator_lr == 0.5 / 16


def test_a_side_that_is_paused_is_not_called_healthy() -> None:
    doctor = Doctor(DoctorConfig(window=10, every=10, dominates="balance"))
    ill = {**HEALTHY, **CHANGES[State.DOMINATES]}
    found = []
    for step in range(5, 100):
        plan = doctor.adjust(SCHEDULE.at(step))
        scalars = ill if plan.updates_discriminator else {"loss/reconstruction": 0.01}
        diagnosis = doctor.diagnose(plan, scalars)
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
    after = doctor.adjust(SCHEDULE.at(25))
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
    after = doctor.adjust(SCHEDULE.at(40))
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
    second.load_state_dict(state)
    assert told(second, ill, range(31, 80)) == told(whole, ill, range(31, 80))
    assert second.factors(SCHEDULE.at(60)) == whole.factors(SCHEDULE.at(60))
    # A rollback brings back what was measured, and not the weights that it was to be rid of.
    second.rewind_state_dict(state)
    plan = SCHEDULE.at(60)
    assert second.factors(plan) == whole.factors(plan) != first.factors(plan)
    before = json.loads(json.dumps(Doctor(config).state_dict()))
    second.rewind_state_dict(before)
    assert second.adjust(plan).discriminator_lr == whole.adjust(plan).discriminator_lr
