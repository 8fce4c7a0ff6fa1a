"""What changed phases do to the step that a run goes on at."""

from __future__ import annotations

import pytest

from glci_dist import compose
from glci_dist.config import PhaseConfig
from glci_dist.training.adversarial_weight import AdversarialWeight
from glci_dist.training.resume_changes import changes_of_steps, schedule_changes


def phases(**steps: int) -> dict[str, PhaseConfig]:
    return {name: PhaseConfig(steps=count, completion_every=1, completion_lr=1.0) for name, count in steps.items()}


BEFORE = phases(completion=40, discriminator=2, joint=20)


@pytest.mark.parametrize("now", [BEFORE, phases(completion=40, spare=0, discriminator=2, joint=20)])
def test_where_nothing_moved_nothing_is_said(now: dict[str, PhaseConfig]) -> None:
    assert schedule_changes(46, BEFORE, now) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (
            phases(completion=60, discriminator=2, joint=20),
            ["is in phase completion (step 46 of 60) now, 14 steps to go"],
        ),
        (
            phases(completion=20, discriminator=2, joint=30),
            [
                "was in phase joint (step 4 of 20), is in phase joint (step 24 of 30) now, 6 steps to go in it",
                "steps 4 to 23 of phase joint are passed by",
            ],
        ),
        (
            phases(completion=20, discriminator=2, joint=20, polish=20),
            ["is in phase polish (step 4 of 20) now", "steps 0 to 3 of phase polish are passed by"],
        ),
        (phases(completion=40, joint=20), ["was in phase joint (step 4 of 20), is in phase joint (step 6 of 20) now"]),
        (phases(completion=40, discriminator=2, contest=20), ["is in phase contest (step 4 of 20) now"]),
        (phases(joint=20, completion=40, discriminator=2), ["is in phase completion (step 26 of 40) now"]),
        (phases(start=10, completion=40, discriminator=2, joint=20), ["is in phase completion (step 36 of 40) now"]),
        (phases(completion=40, discriminator=2, joint=30), ["as before, with 26 steps to go in it where 16 were"]),
        (phases(completion=40, discriminator=2), ["lies at or beyond the end of the 42 steps now: no step is left"]),
        (phases(completion=40), ["lies at or beyond the end of the 40 steps now"]),
    ],
)
def test_where_the_step_stood_and_stands_is_said(now: dict[str, PhaseConfig], said: list[str]) -> None:
    told = schedule_changes(46, BEFORE, now)
    for each in said:
        assert any(each in line and (line.startswith("step 46 ") or "passed by" in line) for line in told), told


def test_a_run_that_was_done_and_is_longer_now_says_where_it_goes_on() -> None:
    (line,) = schedule_changes(62, BEFORE, phases(completion=40, discriminator=2, joint=25))
    assert "was at the schedule's end (62 steps), is in phase joint (step 20 of 25) now, 5 steps to go" in line


def test_learning_rates_that_the_schedule_moved_are_said() -> None:
    before, now = phases(only=20), phases(only=40)
    for each in (*before.values(), *now.values()):
        each.lr_schedule = "linear"
    told = schedule_changes(10, before, now)
    assert any("puts the learning rates of step 10 at 0.744 of their peak now, 0.474 before" in line for line in told)


def test_a_phase_whose_balance_is_measured_on_steps_that_are_passed_by_says_so() -> None:
    now = phases(completion=20, discriminator=2, contest=60)
    now["contest"].balance = 1.0
    told = schedule_changes(46, BEFORE, now)
    assert any("those that its balance is measured on among them" in line for line in told)


def test_what_a_balance_measured_stays_with_its_phase_by_its_name() -> None:
    balance = AdversarialWeight()
    balance.load_state_dict({"phase": 2, "steps": 20, "reconstruction": 3.0, "adversarial": 2.0})
    balance.renumber_phase(["completion", "discriminator", "joint"], ["completion", "joint"])
    assert balance.state_dict()["phase"] == 1
    balance.renumber_phase(["completion", "joint"], ["completion", "other"])
    assert balance.state_dict()["phase"] == -1


def test_another_batch_of_an_earlier_phase_moves_the_order() -> None:
    words = ["~tuning", "data.shards=shards", "name=run", "phases.coarse.steps=10", "phases.coarse.batch=64"]
    before = compose.load(words)
    (line,) = changes_of_steps(15, before, compose.load([*words, "phases.coarse.batch=48"]))
    assert line == (
        "the steps before step 15 have 640 photos now, 800 before: the order of samples goes on elsewhere, and photos "
        "of this epoch may come again or be left out"
    )
    # Later phases concern the steps to come, whose samples are known by the configuration alone.
    assert changes_of_steps(15, before, compose.load([*words, "phases.joint.batch=48"])) == []
    gone = changes_of_steps(2000, before, compose.load([*words, "phases.coarse.batch=48"]))
    assert not any("order of samples" in each for each in gone)
