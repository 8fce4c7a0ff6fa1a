"""The newest attempt owns a run: what an older one does by its own paths fails, and nothing of it is lost before."""

from __future__ import annotations

import json
import os
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from glci_dist.errors import Superseded
from glci_dist.runs import attempts
from glci_dist.runs.journal import Journal, read_journal
from tests.journal import event


def test_attempts_are_numbered_and_say_who_they_are(tmp_path: Path) -> None:
    first, second = attempts.begin(tmp_path, ranks=4), attempts.begin(tmp_path, ranks=2)
    assert (first.number, second.number) == (1, 2)
    assert attempts.numbers(tmp_path) == [1, 2]
    assert attempts.lease(tmp_path, 1)["ranks"] == 4
    assert attempts.lease(tmp_path, 2)["pid"] == os.getpid()
    assert first.is_over()
    assert not second.is_over()
    assert "attempt 1 of" in str(first.superseded())
    assert f"attempt 2 (process {os.getpid()} on {socket.gethostname()}) owns the run now" in str(first.superseded())


def test_an_older_attempt_cannot_rename_anything_out_of_its_folder_or_into_it(tmp_path: Path) -> None:
    older = attempts.begin(tmp_path, ranks=1)
    written = older.folder / "step-00000001.writing"
    written.mkdir()
    kept = tmp_path / "checkpoints" / "step-00000002"
    kept.mkdir(parents=True)
    attempts.begin(tmp_path, ranks=1)

    with pytest.raises(Superseded), older.fenced():
        os.rename(written, tmp_path / "checkpoints" / "step-00000001")
    with pytest.raises(Superseded), older.fenced():
        os.rename(kept, older.folder / "step-00000002.deleting")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    # What it was writing was cleared away.
    assert not list((tmp_path / "attempts").rglob("*.writing"))


def test_an_attempt_that_stalls_before_it_has_its_folder_ends_and_its_number_is_never_another_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = attempts._take_number
    newer: list[int] = []

    def take(run: Path, facts: dict[str, Any]) -> attempts.Attempt:
        taken = real(run, facts)
        monkeypatch.setattr(attempts, "_take_number", real)
        # It holds the lease of number 1 and nothing else; meanwhile two others begin.
        newer.extend(attempts.begin(run, ranks=1).number for _ in range(2))
        return taken

    monkeypatch.setattr(attempts, "_take_number", take)
    with pytest.raises(Superseded, match=r"attempt 1 of .* attempt 3 \(process"):
        attempts.begin(tmp_path, ranks=1)
    assert newer == [2, 3]
    assert sorted(path.name for path in (tmp_path / "attempts").iterdir() if path.is_dir()) == ["0002.over", "0003"]
    assert attempts.begin(tmp_path, ranks=1).number == 4


def test_a_missing_file_that_is_not_the_fences_doing_stays_what_it_is(tmp_path: Path) -> None:
    attempt = attempts.begin(tmp_path, ranks=1)
    with pytest.raises(FileNotFoundError), attempt.fenced():
        (attempt.folder / "nothing").read_bytes()


def test_an_older_attempt_cannot_write_the_journal_and_nothing_that_it_wrote_before_is_lost(tmp_path: Path) -> None:
    older = Journal(attempts.begin(tmp_path, ranks=1))
    older.write(event("start", 0))
    newer = Journal(attempts.begin(tmp_path, ranks=1))
    with pytest.raises(Superseded):
        older.write(event("checkpoint", 5))
    newer.write(event("resume", 0))
    assert [(each.attempt, each.name) for each in read_journal(tmp_path)] == [(1, "start"), (2, "resume")]


def test_a_line_written_to_a_journal_that_was_open_when_the_newer_attempt_began_is_in_no_journal(
    tmp_path: Path,
) -> None:
    older = attempts.begin(tmp_path, ranks=1)
    Journal(older).write(event("start", 0))
    # As a process that was stopped between opening and writing.
    file = os.open(older.journal, os.O_WRONLY | os.O_APPEND)
    newer = Journal(attempts.begin(tmp_path, ranks=1))
    os.write(file, b'{"time": 1, "event": "checkpoint", "step": 9, "attempt": 1}\n')
    os.close(file)
    newer.write(event("resume", 0))
    assert [each.name for each in read_journal(tmp_path)] == ["start", "resume"]


def begin_many(run: Path) -> list[int]:
    numbers = []
    for _ in range(25):
        try:
            numbers.append(attempts.begin(run, ranks=1).number)
        except Superseded:
            continue
    return numbers


def test_attempts_that_begin_at_the_same_time_never_share_a_number_and_the_newest_owns_the_run(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("forkserver")) as pool:
        numbers = [number for found in pool.map(begin_many, [tmp_path] * 4) for number in found]
    assert len(numbers) == len(set(numbers))
    assert len(numbers) >= 25
    newest = attempts.numbers(tmp_path)[-1]
    owners = [path for path in (tmp_path / "attempts").iterdir() if path.is_dir() and path.suffix != ".over"]
    assert [path.name for path in owners] == [f"{newest:04d}"]
    Journal(attempts.Attempt(tmp_path, newest)).write(event("start", 0))
    assert read_journal(tmp_path)[-1].attempt == newest


def test_every_event_stands_in_order_with_time_attempt_host_and_process(tmp_path: Path) -> None:
    before = time.time() - 1
    assert read_journal(tmp_path) == []
    journal = Journal(attempts.begin(tmp_path, ranks=2))
    journal.write(event("start", 0, ranks=2))
    journal.write(event("checkpoint", 10, path="step-00000010"))

    text = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.dumps(each.record()) for each in read_journal(tmp_path)] == text
    lines = [json.loads(line) for line in text]
    assert [(line["event"], line["step"]) for line in lines] == [("start", 0), ("checkpoint", 10)]
    assert lines[0]["ranks"] == 2
    for line in lines:
        assert (line["attempt"], line["host"], line["pid"]) == (1, socket.gethostname(), os.getpid())
        assert before <= line["time"] <= time.time() + 1


def test_a_torn_line_is_passed_over_and_the_next_attempt_begins_a_new_one(tmp_path: Path) -> None:
    Journal(attempts.begin(tmp_path, ranks=1)).write(event("start", 0))
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"time": 1, "event": "check')
    Journal(attempts.begin(tmp_path, ranks=1)).write(event("resume", 0))
    assert [each.name for each in read_journal(tmp_path)] == ["start", "resume"]


def test_events_that_a_full_disk_refused_follow_in_order_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(attempts.begin(tmp_path, ranks=1))
    real, room = os.write, [30, 0]

    def write(file: int, content: bytes) -> int:
        # Room for a part of the first line, then for nothing.
        if room and not room[0]:
            room.pop(0)
            raise OSError(28, "No space left on device")
        return real(file, content[: room.pop(0)]) if room else real(file, content)

    monkeypatch.setattr(os, "write", write)
    for step in range(4):
        journal.write(event("checkpoint", step))
    assert [each.step for each in read_journal(tmp_path)] == [0, 1, 2, 3]
