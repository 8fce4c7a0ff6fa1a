"""The account of a run's time and lost steps, from what its attempts left behind."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from glci_dist.config import PhaseConfig
from glci_dist.runs import attempts
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.journal import Journal
from glci_dist.runs.ledger import LastSign, Ledger, account, process_start
from glci_dist.slurm.pace import in_words, seconds_a_pixel
from glci_dist.slurm.run_status import read_status
from glci_dist.slurm.status import lines
from glci_dist.training.phases import Schedule
from tests.journal import event

SCHEDULE = Schedule({"all": PhaseConfig(steps=30)}, global_batch=8, size=64)


@dataclass(frozen=True)
class Report:
    data_seconds: float = 0.1
    collective_seconds: float = 0.2
    stall_seconds: float = 0.0


def sign(attempt: Attempt, *, began: float, time: float, step: int, steps: int, **seconds: float) -> None:
    """Have an attempt say how far it is."""
    said = LastSign(time, began, step, steps)
    said.seconds |= seconds
    attempt.alive.write_text(json.dumps(asdict(said)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three attempts of 100 s, 20 s apart: killed at step 12 after a checkpoint of 10, stopped, finished."""
    first = attempts.begin(tmp_path, ranks=2)
    journal = Journal(first)
    journal.write(event("start", 0))
    journal.write(event("checkpoint", 10))
    sign(first, began=1e6, time=1e6 + 100, step=12, steps=12, startup=10, compute=60, communication=18, data=12)
    second = attempts.begin(tmp_path, ranks=4)
    journal = Journal(second)
    journal.write(event("resume", 10))
    journal.write(event("stopped", 20, reason="stopped by SIGUSR2 at step 19"))
    sign(second, began=1e6 + 120, time=1e6 + 220, step=20, steps=10, startup=20, compute=70, checkpoint=10)
    third = attempts.begin(tmp_path, ranks=2)
    journal = Journal(third)
    journal.write(event("resume", 20))
    journal.write(event("end", 30))
    sign(third, began=1e6 + 240, time=1e6 + 340, step=30, steps=10, startup=20, compute=80)
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    ends = {1: 1e6 + 100, 2: 1e6 + 220, 3: 1e6 + 340}
    text = "".join(json.dumps({**each, "time": ends[each["attempt"]]}) + "\n" for each in events)
    (tmp_path / "journal.jsonl").write_text(text)
    return tmp_path


def test_each_attempt_is_told_as_it_went(run: Path) -> None:
    found = account(run).attempts
    assert [(a.number, a.ranks, a.resumed_at, a.reached, a.lost_steps, a.state) for a in found] == [
        (1, 2, 0, 12, 2, "died"),
        (2, 4, 10, 20, 0, "stopped"),
        (3, 2, 20, 30, 0, "done"),
    ]
    assert found[1].reason == "stopped by SIGUSR2 at step 19"


def test_every_second_is_accounted_for_once(run: Path) -> None:
    seconds = account(run).seconds()
    # Two of the first attempt's twelve steps were run again: a sixth of its 90 s of work.
    assert seconds == pytest.approx(
        {
            "compute": 50 + 70 + 80,
            "communication": 15,
            "data": 10,
            "checkpoint": 10,
            "startup": 50,
            "lost": 15,
            "restart": 40,
        }
    )
    assert sum(seconds.values()) == pytest.approx(340)
    assert account(run).shares()["compute"] == pytest.approx(200 / 340)


@pytest.mark.parametrize(
    ("events", "steps", "kind"),
    [
        ([("start", 0)], 0, "startup"),
        ([("start", 0)], 5, "lost"),
        ([("start", 0), ("stopped", 5)], 5, "checkpoint"),
        ([("start", 0), ("end", 5)], 5, "checkpoint"),
    ],
)
def test_what_an_attempt_did_after_its_last_step_is_accounted_for(
    tmp_path: Path, events: list[tuple[str, int]], steps: int, kind: str
) -> None:
    attempt = attempts.begin(tmp_path, ranks=1)
    for name, step in events:
        Journal(attempt).write(event(name, step))
    now = time.time()
    sign(attempt, began=now - 100, time=now, step=steps, steps=steps, compute=60.0 if steps else 0.0)
    attempts.begin(tmp_path, ranks=1)
    found = account(tmp_path).attempts[0]
    assert found.seconds[kind] == pytest.approx(40 if steps else 100, abs=1)
    assert sum(found.seconds.values()) == pytest.approx(100, abs=1)


def test_the_status_says_it_in_words(run: Path) -> None:
    told = lines(read_status(run), SCHEDULE)
    assert "done: step 30 of 30" in told
    assert "compute 58.8%" in told[-1]
    assert "lost 4.4%" in told[-1]
    assert "restart 11.8%" in told[-1]
    assert told[-1].startswith("wall time of all attempts, 5.7 min")
    # None of its checkpoints is there.
    assert "the checkpoint of step 20 is not there any more: none stands, the run would start anew" in told


def test_what_was_stopped_before_its_first_checkpoint_says_that_nothing_is_saved(tmp_path: Path) -> None:
    attempt = attempts.begin(tmp_path, ranks=1)
    Journal(attempt).write(event("start", 0))
    Journal(attempt).write(event("stopped", 7, reason="stopped by SIGTERM"))
    assert "stopped: step 0 of 30, no step is saved" in lines(read_status(tmp_path), SCHEDULE)[3]


def test_the_time_left_is_that_of_the_pixels_that_are_left(tmp_path: Path) -> None:
    # 20 steps of 16 photos of 32 px, then 10 of 8 photos of 64 px: a step of these is twice the work.
    schedule = Schedule(
        {"coarse": PhaseConfig(steps=20, size=32, batch=16), "fine": PhaseConfig(steps=10)}, global_batch=8, size=64
    )
    attempt = attempts.begin(tmp_path, ranks=1)
    Journal(attempt).write(event("start", 0))
    sign(attempt, began=time.time() - 200, time=time.time(), step=20, steps=20, compute=200)
    told = lines(read_status(tmp_path), schedule)
    assert any("step 20 of 30, on average 0.4 img/s of 64 px, 3 min left" in line for line in told), told


def test_the_speed_of_an_attempt_is_that_of_its_steps_within_the_schedule(tmp_path: Path) -> None:
    attempt = attempts.begin(tmp_path, ranks=1)
    Journal(attempt).write(event("start", 0))
    sign(attempt, began=time.time() - 200, time=time.time(), step=20, steps=20, compute=200)
    (found,) = account(tmp_path).attempts

    def schedule(steps: int) -> Schedule:
        return Schedule({"fine": PhaseConfig(steps=steps)}, global_batch=8, size=64)

    # 10 s for 8 photos, also if the schedule has become shorter than what was run.
    assert seconds_a_pixel(found, schedule(30)) == pytest.approx(10 / 8 / 64**2)
    assert seconds_a_pixel(found, schedule(5)) == pytest.approx(10 / 8 / 64**2)
    assert seconds_a_pixel(replace(found, resumed_at=6), schedule(5)) is None


@pytest.mark.parametrize(
    ("speed", "words"), [(1234.5, "1,234"), (99.6, "100"), (12.4, "12"), (9.6, "10"), (2.0, "2"), (0.432, "0.43")]
)
def test_speeds_are_rounded_to_what_is_known_of_them(speed: float, words: str) -> None:
    assert in_words(speed) == words


def test_steps_that_a_rollback_ran_again_are_lost(tmp_path: Path) -> None:
    attempt = attempts.begin(tmp_path, ranks=1)
    journal = Journal(attempt)
    journal.write(event("start", 0))
    journal.write(event("rollback", 14, to=10))
    sign(attempt, began=time.time() - 100, time=time.time(), step=20, steps=25, compute=100)
    (found,) = account(tmp_path).attempts
    assert found.lost_steps == 5
    assert found.seconds["lost"] == pytest.approx(20)
    assert found.state == "running"
    told = lines(read_status(tmp_path), SCHEDULE)
    assert any("running: step 20 of 30, on average 2 img/s of 64 px, 1 min left" in line for line in told)


def test_attempts_that_did_not_come_to_their_first_step_are_told_too(tmp_path: Path) -> None:
    attempts.begin(tmp_path, ranks=1)
    attempts.begin(tmp_path, ranks=1)
    found = account(tmp_path).attempts
    # The newest may still be starting.
    assert [(attempt.reached, attempt.lost_steps, attempt.state) for attempt in found] == [
        (0, 0, "died"),
        (0, 0, "running"),
    ]


def test_the_ledger_of_a_running_attempt_says_what_the_account_will_find(tmp_path: Path) -> None:
    ledger = Ledger(attempts.begin(tmp_path, ranks=1))
    for step in range(3):
        time.sleep(0.05)
        ledger.add_step(step, Report(data_seconds=0.01, collective_seconds=0.01))
    ledger.write()
    (found,) = account(tmp_path).attempts
    assert (found.reached, found.resumed_at) == (3, 0)
    assert found.seconds["data"] == pytest.approx(0.03)
    assert found.seconds["communication"] == pytest.approx(0.02)
    assert found.seconds["compute"] >= 2 * 0.03
    assert 0 < found.seconds["startup"] <= time.time() - process_start()
    shares = ledger.shares()
    assert sum(shares.values()) == pytest.approx(1)
    # The account has the time since the last step too.
    assert shares == pytest.approx(account(tmp_path).shares(), abs=1e-3)


def test_the_start_of_a_process_lies_in_the_past_and_does_not_move() -> None:
    first = process_start()
    assert 0 < time.time() - first < 24 * 3600
    assert process_start() == pytest.approx(first, abs=0.1)
