"""Events of a journal keep their lines, and are read whichever version wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glci_dist.runs import attempts, events
from glci_dist.runs.events import (
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointMissing,
    CheckpointSaved,
    Completed,
    ConfigurationChanged,
    Diagnosed,
    DisplayFailed,
    Evaluated,
    EvaluationFailed,
    Event,
    Failed,
    FirstStepDone,
    GradientNotFinite,
    GradientSpike,
    NetworkReset,
    OtherVersion,
    OutputLost,
    PhaseStarted,
    Resumed,
    RetentionFailed,
    RolledBack,
    SampleReplaced,
    SignalReceived,
    Started,
    StepMoved,
    Stopped,
    StragglerFound,
    UnknownEvent,
    WorkerLost,
)
from glci_dist.runs.journal import Journal, last_saved, read_journal

BEFORE = Path(__file__).with_name("journal_of_dicts.jsonl")
"""What the version wrote that had no classes of events."""
MOVE = "step 10 was in phase joint (step 0 of 2), is in phase completion (step 10 of 14) now"
ASIDE = "attempts/0001/step-00000008.damaged"
ALL = (
    Started(0, 2, "cuda:0", "bf16"),
    ConfigurationChanged(0, ("seed: 0 / 1",)),
    OtherVersion(0, ("keys that are new in this version: engine.ema=0.0",)),
    CheckpointMissing(0, "step-00000012"),
    StepMoved(0, (MOVE,)),
    CheckpointDamaged(0, "step-00000008", "manifest.json is missing", ASIDE),
    PhaseStarted(0, "completion"),
    FirstStepDone(0, {"imports": 3.251, "the first step": 0.5}),
    SampleReplaced(1, "shard-00000.tar", "a/b", 3, "truncated"),
    WorkerLost(1, 1, "node1", "Killed"),
    GradientNotFinite(2, ("completion", "discriminator"), "rollback", ("nan", "inf"), ("a", "b")),
    GradientSpike(3, ("completion",), "skip", ("12.5",), (3.25,), ("a", "b")),
    RolledBack(3, 0, (3, 4)),
    RolledBack(3, 0, (0, 0)),
    StragglerFound(4, "node1", 1.523, 61.0),
    Diagnosed(19, "healthy", (), "nothing to change", ""),
    Diagnosed(29, "discriminator asleep", ("it tells 50%", "logits 0.01 apart"), "raise it", "balance", 1.0, 0.03125),
    NetworkReset(30, "discriminators"),
    CheckpointSaved(40, "joint", "step-00000040", 123456, 0.0123, 1.5, ("step-00000020",)),
    RetentionFailed(40, "step-00000030 cannot be removed"),
    CheckpointFailed(50, "No space left on device, at https://me:secret@host/x?sig=secret"),
    Evaluated(39, {"hole_l1_x100": 4.25, "psnr_db": 21.0}),
    EvaluationFailed(49, "shard-00001.tar/x does not decode"),
    DisplayFailed(51, "TensorBoard", "[Errno 28] No space left on device"),
    OutputLost(52, "stdout", "Broken pipe"),
    SignalReceived(53, (None, "SIGUSR2")),
    Stopped(54, "stopped by SIGUSR2 after step 53", 0.25),
    Stopped(54, "step 53: contest"),
    Resumed(54, 4, "cpu", "fp32"),
    Failed(55, "rank 0 on node0: RuntimeError"),
    Failed(55),
    Resumed(60, 4),
    Completed(60),
)


def line(name: str, **content: Any) -> dict[str, Any]:
    return {"time": 5.5, "event": name, "step": 7, **content}


def test_a_journal_has_the_lines_that_it_had_before_there_were_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = BEFORE.read_bytes().splitlines()
    journal = Journal(attempts.begin(tmp_path, ranks=2))
    times = iter([json.loads(each)["time"] for each in before])
    monkeypatch.setattr("glci_dist.runs.journal.time.time", lambda: next(times))
    monkeypatch.setattr("glci_dist.runs.journal.socket.gethostname", lambda: "node0")
    monkeypatch.setattr("glci_dist.runs.journal.os.getpid", lambda: 4711)
    for event in ALL:
        journal.write(event)
    assert journal.path.read_bytes().splitlines() == before
    assert [type(event) for event in read_journal(tmp_path)] == [type(event) for event in ALL]


@pytest.mark.parametrize("kind", Event.kinds.values(), ids=Event.kinds)
def test_an_event_is_read_as_it_was_written(kind: type[Event]) -> None:
    unknown = UnknownEvent(7, {"time": 5.5, "event": "danced", "step": 7, "partners": [{"name": "x"}]}, time=5.5)
    instances = [event for event in (*ALL, unknown) if type(event) is kind]
    assert instances
    for event in instances:
        assert events.read(json.loads(json.dumps(event.record()))) == event


@pytest.mark.parametrize("name", Event.kinds)
def test_fields_that_are_missing_of_another_type_or_of_a_newer_version_are_no_error(name: str) -> None:
    bare = events.read(line(name))
    odd: dict[str, Any] = {"to": "x", "ranks": [1], "bytes": float("nan"), "attempt": None, "evidence": 3, "newer": {}}
    for content in ({}, odd):
        found = events.read(line(name, **content))
        assert type(found) is type(bare) is Event.kinds[name]
        assert (found.step, found.time, found.attempt, found.host) == (7, 5.5, 0, "")
        if type(found) not in (UnknownEvent, Evaluated):
            assert found == bare


def test_numbers_may_be_of_another_kind() -> None:
    found = events.read({**line("straggler", ratio=2, seconds=61), "step": 7.0, "time": 5})
    assert json.dumps(found.record()).endswith('"slowest": "", "ratio": 2.0, "seconds": 61.0}')
    assert '"time": 5.0, "event": "straggler", "step": 7,' in json.dumps(found.record())


def test_the_newest_checkpoint_is_that_of_the_journals_of_every_version() -> None:
    assert last_saved([]) is None
    saved = events.read({**line("checkpoint", colour="red"), "step": 10})
    assert last_saved([saved]) == 10
    assert last_saved([saved, events.read(line("danced"))]) == 10
    assert last_saved([saved, events.read(line("rollback"))]) == 10
    assert last_saved([saved, events.read(line("rollback", to=4))]) == 4
    assert last_saved([saved, events.read(line("resume"))]) == 7
    assert last_saved([saved, events.read(line("start"))]) is None


def test_a_kind_of_events_has_a_name_of_its_own() -> None:
    kinds = dict(Event.kinds)
    with pytest.raises(TypeError, match="name"):

        class Nameless(Event):  # type: ignore[call-arg]
            pass

    with pytest.raises(TypeError, match="two kinds of events are named 'rollback': RolledBack and Another"):

        class Another(Event, name="rollback"):
            pass

    assert Event.kinds == kinds
