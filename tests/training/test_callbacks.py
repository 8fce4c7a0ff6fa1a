"""Callbacks, what they decide and in which order; built and run in this process, without a process group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from glci_dist import compose
from glci_dist.cluster.signals import StopRequest
from glci_dist.cluster.world import World, joined
from glci_dist.config import Config, PhaseConfig
from glci_dist.data.batch import Batch, Replacement
from glci_dist.errors import Fault, Interrupted, Superseded
from glci_dist.runs import attempts
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.journal import Journal
from glci_dist.training.callbacks.accounts import PhaseStarts, Startup, StragglerWatch
from glci_dist.training.callbacks.base import Callback, Callbacks, Control, TrainedStep
from glci_dist.training.callbacks.gradients import GradientWatch
from glci_dist.training.callbacks.samples import SampleAudit, SampleWatch
from glci_dist.training.callbacks.stopping import LeaseWatch, StopSignals
from glci_dist.training.checkpointer import Rollback
from glci_dist.training.engines import Update
from glci_dist.training.gan_step import NO_NORM_LIMITS, StepMeasurements
from glci_dist.training.gradient_monitor import GradientMonitor
from glci_dist.training.phases import Schedule
from glci_dist.training.run_log import RunLog
from glci_dist.training.setup import prepare
from glci_dist.training.startup_timer import StartupTimer
from glci_dist.training.step_report import StepReport
from glci_dist.training.stragglers import StragglerDetector
from tests.journal import read_journal
from tests.small_run import small
from tests.worlds import run_world

ALONE = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))
SCHEDULE = Schedule({"completion": PhaseConfig(steps=9, completion_every=1)}, global_batch=4)


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return attempts.begin(tmp_path / "run", ranks=1)


@pytest.fixture
def log(attempt: Attempt) -> RunLog:
    return RunLog(Journal(attempt))


@pytest.fixture
def config() -> Config:
    return compose.load(["data.shards=x", "global_batch=4", "data.order.lanes=4"])


_NOTHING = StepReport(
    plan=SCHEDULE.at(0),
    values={},
    alpha=None,
    completion_norm=None,
    discriminator_norm=None,
    skipped=False,
    step_seconds=(0.1,),
    own_seconds=(0.1,),
    data_seconds=0.0,
    collective_seconds=0.0,
    replaced=0,
    stop=False,
    stall_seconds=0.0,
    superseded=False,
)
_NO_UPDATE = StepMeasurements()


def step(
    number: int = 0, *, batch: Batch | None = None, measures: StepMeasurements = _NO_UPDATE, **report: Any
) -> TrainedStep:
    """A step in which nothing happened but what is given."""
    return TrainedStep(replace(_NOTHING, plan=SCHEDULE.at(number), **report), batch, measures, NO_NORM_LIMITS)


def batch(**changes: Any) -> Batch:
    corners = torch.zeros(4, 2, dtype=torch.int32)
    photos = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    boxes, strokes = torch.zeros(4, 1, 4, dtype=torch.int32), torch.zeros(4, 0, 5)
    made = Batch(0, range(4), 4, photos, boxes, strokes, corners, corners, None, ("a", "b", "c", "d"), ())
    return replace(made, **changes)


def events(attempt: Attempt, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(attempt.run) if event["event"] == kind]


def test_the_first_reason_to_end_counts_but_a_fault_counts_more_than_a_signal() -> None:
    control, signal, fault = Control(), Interrupted("a signal"), Fault("broken")
    control.end(signal)
    control.end(Interrupted("another"))
    assert control.ending is signal
    control.end(fault)
    control.end(signal)
    assert control.ending is fault


def test_a_run_that_goes_back_forgets_the_signal_which_is_asked_for_again_and_no_fault() -> None:
    control = Control()
    control.end(Interrupted("a signal"))
    control.go_back(3)
    assert (control.ending, control.is_final) == (None, True)
    assert [control.take_rollback_step(), control.take_rollback_step()] == [3, None]
    fault = Fault("broken")
    control.end(fault)
    control.go_back(3)
    assert control.ending is fault
    newer = Superseded("another attempt's")
    control.end(newer)
    assert control.ending is newer


@pytest.mark.distributed
@pytest.mark.parametrize("treatment", [(), ("doctor.collapse=balance",)], ids=["diagnosis alone", "treatment"])
def test_a_run_has_its_callbacks_in_the_order_that_they_hang_on(
    faces_shards: str, tmp_path: Path, treatment: tuple[str, ...]
) -> None:
    watching = ("monitor.pictures_every=2", "monitor.progress=true", "monitor.evaluate_every=9", "holes.patch=20")
    overrides = small(faces_shards, tmp_path, steps=(2, 0, 0), extra=(*watching, f"data.val={faces_shards}"))
    (main, other) = run_world(2, callback_names, [*overrides, *treatment])
    deciding = ["MeasureAdversarialWeight", "SampleWatch", "StopSignals", "GradientWatch", "DiagnoseTraining"]
    deciding += [*(["Treatment"] if treatment else []), "PeriodicEvaluation"]
    first = ["LeaseWatch", "Startup", "PhaseStarts", "SampleAudit"]
    assert main == [
        *first,
        *("Accounting", "StragglerWatch", "Logging", "Pictures", "Progress", "LostOutput"),
        *deciding,
    ]
    assert other == [*first, *deciding]


def callback_names(overrides: list[str]) -> list[str]:
    config = compose.load(overrides)
    with joined(config.engine) as world:
        trainer = prepare(config, world)
        trainer.close()
        return [type(each).__name__ for each in trainer.callbacks.all]


class Noting(Callback):
    """Writes down what it is called for, and does as it is told."""

    def __init__(self, name: str, calls: list[str], *, goes_back: bool = False, error: Exception | None = None) -> None:
        self._name, self._calls, self._goes_back, self._error = name, calls, goes_back, error

    def after_step(self, done: TrainedStep, control: Control) -> None:
        self._calls.append(self._name)
        if self._error is not None:
            raise self._error
        if self._goes_back:
            control.go_back(0)

    def close(self) -> None:
        self._calls.append(f"{self._name} closed")


class Display(Noting):
    is_display = True


def test_callbacks_are_called_in_their_order_and_none_after_one_that_had_the_run_go_back(log: RunLog) -> None:
    calls: list[str] = []
    parts = Callbacks([Noting("a", calls), Noting("b", calls, goes_back=True), Noting("c", calls)], log)
    parts.after_step(step(), Control())
    parts.close()
    assert calls == ["a", "b", "a closed", "b closed", "c closed"]


def test_a_display_that_cannot_write_is_told_once_and_what_is_no_display_ends_the_run(
    log: RunLog, attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    parts = Callbacks([Display("a", calls, error=OSError("no room")), Noting("b", calls)], log)
    for number in range(3):
        parts.after_step(step(number), Control())
    assert calls == ["a", "b"] * 3
    assert [(event["step"], event["observer"]) for event in events(attempt, "not-shown")] == [(0, "Display")]
    assert capsys.readouterr().out == "Display could not write: no room; training goes on\n"
    with pytest.raises(OSError, match="no room"):
        Callbacks([Noting("a", [], error=OSError("no room"))], log).after_step(step(), Control())


def test_a_lost_lease_ends_the_run_before_anything_else_is_done(log: RunLog, attempt: Attempt) -> None:
    calls: list[str] = []
    control = Control()
    Callbacks([LeaseWatch(attempt), Noting("a", calls)], log).after_step(step(superseded=True), control)
    assert control.is_superseded
    assert calls == []


def test_a_signal_on_any_rank_ends_the_run_by_its_name(log: RunLog, attempt: Attempt) -> None:
    stop, control = StopRequest(), Control()
    watch = StopSignals(stop, ALONE, log)
    watch.after_step(step(4), control)
    assert control.ending is None
    stop.name = "SIGUSR2"
    watch.after_step(step(5, stop=True), control)
    assert str(control.ending) == "stopped by SIGUSR2 after step 5"
    assert [event["signals"] for event in events(attempt, "signal")] == [["SIGUSR2"]]


def test_samples_that_do_not_decode_are_named_and_end_the_run_beyond_the_tolerance(
    config: Config, log: RunLog, attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    config.data.tolerance = 0.002
    gradient_monitor, control = GradientMonitor(config.engine), Control()
    watch = SampleWatch(config, ALONE, attempt.run / "journal.jsonl", gradient_monitor, log)
    replaced = Replacement(shard="shard-0.tar", key="a", slot=2, reason="truncated")
    for number in range(2):
        watch.after_step(step(number, batch=batch(replaced=(replaced,)), replaced=1), control)
    assert control.ending is None
    watch.after_step(step(2, batch=batch(replaced=(replaced,)), replaced=1), control)
    assert str(control.ending).startswith("3 of 12 samples did not decode, more than data.tolerance=0.002")
    watch.close()
    said = capsys.readouterr().out
    assert "step 0: shard-0.tar/a does not decode (truncated)" in said
    assert "1 photo(s) that do not decode were replaced by others, 3 time(s) in 3 step(s)" in said
    assert [event["slot"] for event in events(attempt, "replaced")] == [2, 2, 2]


def test_a_loader_worker_that_was_lost_is_named(config: Config, log: RunLog, attempt: Attempt) -> None:
    watch = SampleWatch(config, ALONE, attempt.run / "journal.jsonl", GradientMonitor(config.engine), log)
    watch.after_step(step(3, batch=batch(remade=("Killed",)), remade=1), Control())
    (event,) = events(attempt, "worker-lost")
    assert (event["rank"], event["reason"]) == (0, "Killed")


def test_the_audit_counts_each_sample_once_and_goes_on_from_what_was_saved() -> None:
    def audited(steps: range, state: dict[str, Any] | None = None) -> dict[str, Any]:
        audit = SampleAudit(ALONE)
        if state is not None:
            audit.load_state_dict(state)
        for number in steps:
            audit.after_step(step(number, batch=batch()), Control())
        audit.after_step(step(), Control())
        return audit.state_dict()

    whole = audited(range(6))
    assert whole["count"] == 24
    assert audited(range(2, 6), audited(range(2))) == whole
    assert audited(range(5)) != whole


class _NoRollback(Rollback):
    """Where none is configured, asking for one is a mistake."""

    def __init__(self) -> None: ...

    def is_allowed(self) -> bool:
        raise AssertionError


def _bad(norm: float) -> StepMeasurements:
    return StepMeasurements(completion=Update(False, norm))


@pytest.mark.parametrize(
    ("answer", "limit", "ends_at"), [("skip", 3, 2), ("stop", 3, 0), ("skip", 9, None)], ids=["limit", "stop", "skip"]
)
def test_updates_that_were_not_applied_are_answered_as_configured(
    config: Config, log: RunLog, attempt: Attempt, answer: str, limit: int, ends_at: int | None
) -> None:
    engine = replace(config.engine, not_finite=answer, not_finite_limit=limit, precision="fp32")
    control = Control()
    watch = GradientWatch(engine, ALONE, GradientMonitor(engine), _NoRollback(), log, journal=Path("journal.jsonl"))
    for number in range(5):
        watch.after_step(step(number, batch=batch(), measures=_bad(math.nan)), control)
        assert (control.ending is not None) == (ends_at is not None and number >= ends_at)
    found = events(attempt, "not-finite")
    assert [event["answer"] for event in found] == [answer] * 5
    assert found[0]["keys"] == ["a", "b", "c", "d"]


def test_an_overflow_of_fp16_is_no_reason_to_stop(config: Config, log: RunLog) -> None:
    engine = replace(config.engine, not_finite="stop", precision="fp16")
    control = Control()
    watch = GradientWatch(engine, ALONE, GradientMonitor(engine), _NoRollback(), log, journal=Path("journal.jsonl"))
    watch.after_step(step(0, batch=batch(), measures=_bad(math.inf)), control)
    assert control.ending is None


def test_starts_and_slow_hosts_are_written_down_once(
    log: RunLog, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Iterator[float] = iter(float(second) for second in range(100))
    monkeypatch.setattr("glci_dist.training.stragglers.time.monotonic", lambda: next(clock))
    parts = Callbacks(
        [
            Startup(StartupTimer(), log),
            PhaseStarts(log),
            StragglerWatch(StragglerDetector(["one", "other"], share=0.5, seconds=2), log),
        ],
        log,
    )
    for number in range(6):
        parts.before_step(SCHEDULE.at(number))
        parts.after_step(step(number, own_seconds=(0.1, 0.4)), Control())
    (running,) = events(attempt, "running")
    assert "the first step" in running["startup_seconds"]
    assert [(event["step"], event["phase"]) for event in events(attempt, "phase")] == [(0, "completion")]
    assert [event["slowest"] for event in events(attempt, "straggler")] == ["other"]
