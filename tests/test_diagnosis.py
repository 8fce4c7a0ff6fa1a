"""`glci doctor` reads a log, ours or another program's, and says what its contest came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from glci_dist.cli import main
from glci_dist.diagnosis.states import State
from glci_dist.diagnosis.tensorboard_reader import Point, contests
from glci_dist.diagnosis.timeline import diagnose, main_span
from tests.training.test_doctor import CHANGES, HEALTHY
from tests.training.test_overshooting import LEARNING, measured


def points(*parts: tuple[State, int], every: int = 10, start: int = 0) -> list[Point]:
    """A contest that is in each state for so many points."""
    states = [state for state, count in parts for _ in range(count)]
    return [
        Point(start + every * number, {**HEALTHY, **CHANGES.get(state, {}), "phase/number": 2.0})
        for number, state in enumerate(states)
    ]


def write_log(folder: Path, log: list[Point], names: dict[str, str] | None = None) -> Path:
    with SummaryWriter(str(folder)) as writer:
        for point in log:
            for name, value in point.scalars.items():
                if names is None:
                    writer.add_scalar(name, value, point.step)
                elif name in names:
                    writer.add_scalar(names[name], value, point.step)
    return folder


def test_a_contest_is_told_state_by_state() -> None:
    log = points((State.HEALTHY, 10), (State.DOMINATES, 10), (State.CHECKERBOARD, 10))
    spans = diagnose(log, window=50)
    assert [each.finding.state for each in spans] == [State.HEALTHY, State.DOMINATES, State.CHECKERBOARD]
    # A state is named as soon as it holds for most of the last fifty steps.
    assert [each.first for each in spans[1:]] == [120, 220]
    assert main_span(spans).finding.state == State.CHECKERBOARD


def test_what_was_wrong_for_the_longest_is_told_of_a_contest_that_ended_well() -> None:
    assert main_span(diagnose(points((State.ASLEEP, 5), (State.HEALTHY, 30)), window=30)).finding.state == State.HEALTHY
    ill = diagnose(points((State.HEALTHY, 8), (State.NO_CONTEST, 30), (State.HEALTHY, 8)), window=30)
    assert main_span(ill).finding.state == State.NO_CONTEST


def test_only_stretches_in_which_both_sides_train_are_contests_each_phase_by_itself() -> None:
    alone = [Point(step, {"loss/reconstruction": 1.0, "phase/number": 0.0}) for step in range(0, 50, 10)]
    first, second = points((State.HEALTHY, 4), start=50), points((State.HEALTHY, 5), start=90)
    for point in second:
        point.scalars["phase/number"] = 3.0
    assert contests([*alone, *first, *second]) == [first, second]
    assert contests(alone) == []
    assert diagnose(first, window=50) == []


def test_two_phases_are_two_contests_where_a_side_is_updated_less_often_than_scalars_are_written() -> None:
    log = points((State.HEALTHY, 8), every=1) + points((State.HEALTHY, 8), every=1, start=8)
    for number, point in enumerate(log):
        point.scalars["phase/number"] = 1.0 + number // 8
        if number % 2 == 0:
            del point.scalars["loss/adversarial"], point.scalars["phase/alpha"]
    assert [[point.step for point in contest] for contest in contests(log)] == [[1, 3, 5, 7], [9, 11, 13, 15]]


def test_files_in_subfolders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "logs" / "a", points((State.HEALTHY, 3)))
    assert main(["doctor", str(tmp_path / "logs")]) == 2
    assert f"name one of {tmp_path / 'logs' / 'a'}" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_one_line_after_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "log", points((State.HEALTHY, 12)))
    (tmp_path / "file").write_text("")
    assert main(["doctor", str(tmp_path / "log"), "--out", str(tmp_path / "file")]) == 2
    told = capsys.readouterr()
    assert "  healthy\n" in told.out
    assert f"{tmp_path / 'file'} cannot be written" in told.err
    assert told.err.count("\n") == 1


@pytest.mark.parametrize("name", ["diagnosis.html", "diagnosis.txt"])
def test_a_diagnosis_takes_the_place_of_an_earlier_one_and_of_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_log(tmp_path / "log", points((State.HEALTHY, 12)))
    ours, theirs = (("doctor", str(tmp_path / "log"), "--out", str(tmp_path / where)) for where in ("ours", "theirs"))
    assert [main(ours), main(ours)] == [0, 0]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).write_text("years of work")
    assert main(theirs) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/theirs/{name} is there and is no diagnosis of glci; give another --out, or move it away" in line
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == [name]
    assert (tmp_path / "theirs" / name).read_text() == "years of work"


def test_the_command_writes_text_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "run" / "tensorboard", points((State.HEALTHY, 10), (State.DOMINATES, 12)))
    assert main(["doctor", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "adversarial training, steps 0 to 210\n  discriminator dominates\n" in told
    assert "discriminator accuracy: real 96%, completed 96% (limit 95% of both)" in told
    assert "what to change: lower phases.joint.discriminator_lr" in told
    folder = tmp_path / "run" / "diagnosis"
    assert (folder / "diagnosis.txt").read_text().strip() in told
    page = (folder / "diagnosis.html").read_text()
    assert page.count("<svg") == 1
    for part in ("discriminator dominates", "discriminator accuracy", "steps</th>"):
        assert part in page
    # Nothing is fetched from anywhere.
    assert "<script" not in page
    assert "src=" not in page


def test_what_a_run_said_while_it_trained_is_told_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "run" / "tensorboard", points((State.HEALTHY, 12)))
    shared: dict[str, Any] = {"time": 0.0, "event": "diagnosis", "evidence": ["they swing", "by < 1"]}
    events = [
        {**shared, "step": 29, "state": "discriminator asleep", "answer": "warn"},
        {**shared, "step": 39, "state": "healthy", "answer": ""},
        {"time": 0.0, "event": "resume", "step": 39},
        {**shared, "step": 39, "state": "discriminator asleep", "answer": "balance", "alpha": 1.0}
        | {"discriminator_lr": 0.1},
        {"time": 0.0, "event": "renewed", "step": 40, "network": "discriminators"},
        {**shared, "step": 59, "state": "collapse", "answer": "rollback", "alpha": 0.5},
        {"time": 0.0, "event": "rollback", "step": 59, "to": 50},
        {**shared, "step": 59, "state": "collapse", "answer": "stop"},
    ]
    (tmp_path / "run" / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert main(["doctor", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "What the run said while it trained\n  step     29  discriminator asleep: they swing; by < 1\n" in told
    lines = [
        "step     39  discriminator asleep: they swing; by < 1 (balance: alpha x 1, discriminator_lr x 0.1)",
        "step     40  the discriminators were reset",
        "step     59  collapse: they swing; by < 1 (rollback: alpha x 0.5)",
        "step     59  back to step 50",
        "step     59  collapse: they swing; by < 1 (stop)",
    ]
    # What was run again after a restart is told as it came out last.
    assert "\n  ".join(lines) in told
    assert "step     39  healthy" not in told
    page = (tmp_path / "run" / "diagnosis" / "diagnosis.html").read_text()
    assert "collapse: they swing; by &lt; 1 (stop)</li>" in page


def test_what_was_said_before_the_contest_began_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "run" / "tensorboard", [Point(0, {"loss/reconstruction": 1.0})])
    event = {"time": 0.0, "event": "diagnosis", "step": 19, "state": "asleep", "evidence": ["so"], "answer": "stop"}
    (tmp_path / "run" / "journal.jsonl").write_text(json.dumps(event) + "\n")
    assert main(["doctor", str(tmp_path / "run")]) == 0
    assert "step     19  asleep: so (stop)" in capsys.readouterr().out


def test_young_discriminators_of_a_log_may_swing() -> None:
    log = [Point(step, {**HEALTHY, **scalars}) for step, scalars in enumerate(measured(LEARNING))]
    assert [each.finding.state for each in diagnose(log, window=20)] == [State.HEALTHY]
    old = diagnose(log, window=20, since=-100)
    assert State.ASLEEP in [each.finding.state for each in old]


def test_another_programs_log_is_read_by_mapped_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"loss/adversarial": "G/loss", "loss/real": "D/real", "loss/completed": "D/fake"}
    log = points((State.HEALTHY, 24))
    for number, point in enumerate(log):
        for name in names:
            point.scalars[name] *= 0.9**number
    write_log(tmp_path / "theirs", log, names)
    words = [word for ours, theirs in names.items() for word in ("--map", f"{ours}={theirs}")]
    assert main(["doctor", str(tmp_path / "theirs"), *words, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "  no contest\n    the losses of both networks fall together" in told
    assert (tmp_path / "out" / "diagnosis.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{log}", "--map", "loss/real"], "--map loss/real: write OURS=THEIRS"),
        (["{log}", "--map", "loss/reel=D"], "loss/reel is no scalar of a diagnosis: map one of"),
        (["{log}", "--map", "loss/real=nowhere"], "has no scalar nowhere, but"),
        (["{log}", "--window", "0"], "--window=0 is too small"),
        (["{empty}"], "holds no TensorBoard files"),
        (["{alone}"], "has no adversarial training yet"),
    ],
)
def test_what_cannot_be_diagnosed_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    write_log(tmp_path / "log", points((State.HEALTHY, 3)))
    write_log(tmp_path / "alone", [Point(0, {"loss/reconstruction": 1.0})])
    (tmp_path / "empty").mkdir()
    named = [word.format(**{name: tmp_path / name for name in ("log", "alone", "empty")}) for word in words]
    assert main(["doctor", *named]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
