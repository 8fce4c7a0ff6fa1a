"""A build that was stopped is completed by the same command, and anything else is told what stands there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glci_dist.data.index import load_index
from glci_dist.data.plan import BuildJournal, FinishedShard
from glci_dist.data.processes import in_processes
from glci_dist.errors import UserError
from tests.data.shards_help import contents, glci, jpeg, some_photos, write_folder

# A real build in two processes whose main process gets a signal when three shards are done.
STOPPED_BUILD = """
import os, signal, sys
from glci_dist.cli import main
from glci_dist.data.plan import BuildJournal

# A shell that runs the tests in its background starts them with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
add = BuildJournal.add
done = []

def add_and_stop_at_three(journal, finished):
    add(journal, finished)
    done.append(finished)
    if len(done) == 3:
        # The terminal sends Ctrl-C to every process in its foreground.
        os.kill(0 if int(sys.argv[1]) == signal.SIGINT else os.getpid(), int(sys.argv[1]))

BuildJournal.add = add_and_stop_at_three
sys.exit(main(sys.argv[2:]))
"""


def session_members(session: int) -> list[int]:
    """Living processes of a session."""
    members = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields and int(fields[3]) == session and fields[0] != "Z":
            members.append(int(entry.name))
    return members


def stop_a_build(source: Path, folder: Path, with_signal: signal.Signals) -> int:
    """Start a build of shards of three, and stop it at its third: its exit code."""
    build = ["shards", "build", str(source), str(folder), "--samples", "3", "--processes", "2"]
    command = [sys.executable, "-c", STOPPED_BUILD, str(int(with_signal)), *build]
    with open(folder.with_suffix(".err"), "wb") as errors:
        process = subprocess.Popen(command, start_new_session=True, stderr=errors)
    code = process.wait(timeout=60)
    deadline = time.monotonic() + 60
    while session_members(process.pid):
        assert time.monotonic() < deadline, "processes of the stopped build live on"
        time.sleep(0.02)
    return code


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Path, Path]:
    """A source, and a folder in which a build of it was killed."""
    source = write_folder(tmp_path / "photos", {**some_photos(60), "broken.jpg": b"no photo"})
    assert stop_a_build(source, tmp_path / "s", signal.SIGKILL) == -signal.SIGKILL
    return source, tmp_path / "s"


def test_a_killed_build_is_completed_with_the_same_bytes_and_its_finished_shards_kept(
    killed: tuple[Path, Path], tmp_path: Path
) -> None:
    source, folder = killed
    finished = [json.loads(line)["name"] for line in (folder / "build.jsonl").read_text().splitlines()]
    assert len(finished) == 3
    with pytest.raises(UserError, match="not finished"):
        load_index(str(folder))

    # The kill may as well come within a line, within a shard, or be a machine's that loses what it wrote.
    with open(folder / "build.jsonl", "a") as journal:
        journal.write('{"name": "shard-0000')
    (folder / "shard-000019.tar.1.tmp").write_bytes(b"half a shard")
    kept, lost = folder / finished[0], folder / finished[1]
    lost.write_bytes(bytes(lost.stat().st_size))
    before = (kept.stat().st_ino, kept.stat().st_mtime_ns)

    assert glci("shards", "build", source, folder, "--samples", 3, "--processes", 1) == 0
    assert glci("shards", "build", source, tmp_path / "at-once", "--samples", 3, "--processes", 1) == 0
    assert contents(folder) == contents(tmp_path / "at-once")
    assert (folder / "rejects.jsonl").read_bytes() == (tmp_path / "at-once" / "rejects.jsonl").read_bytes()
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == before
    assert not list(folder.glob("*.tmp"))
    assert not (folder / "build.jsonl").exists()


def test_ctrl_c_ends_a_build_that_can_be_completed(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "photos", some_photos(60))
    assert stop_a_build(source, tmp_path / "s", signal.SIGINT) == 3
    error = (tmp_path / "s.err").read_text()
    assert "run the same command again" in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "s").glob("*.tmp"))
    assert glci("shards", "build", source, tmp_path / "s", "--samples", 3, "--processes", 1) == 0
    assert load_index(str(tmp_path / "s")).total == 60


def test_a_build_killed_twice_within_a_line_of_its_journal_loses_only_that_line(tmp_path: Path) -> None:
    for name in ("shard-000000.tar", "shard-000001.tar", "shard-000002.tar"):
        journal = BuildJournal(tmp_path)
        journal.add(FinishedShard(name, None, (("a.jpg", "an empty file"),)))
        journal.close()
        with open(tmp_path / "build.jsonl", "a") as file:
            file.write('{"name": "shard-0000')
    journal = BuildJournal(tmp_path)
    assert list(journal.finished) == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    journal.close()


def die(task: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_a_process_killed_from_outside_ends_the_work_with_one_line() -> None:
    with pytest.raises(UserError, match="killed from outside"):
        list(in_processes(die, range(5), processes=2))


def test_a_finished_build_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "photos", some_photos(4))
    build = ("shards", "build", source, tmp_path / "s", "--processes", 1)
    assert glci(*build) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()}
    capsys.readouterr()
    assert glci(*build) == 0
    assert "already complete" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()} == before
    (tmp_path / "s" / "shard-000000.tar").unlink()
    assert glci(*build) == 2
    assert "shard-000000.tar" in capsys.readouterr().err


def test_another_build_over_an_unfinished_one_is_told_what_stands_there(
    killed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder = killed
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert glci("shards", "build", source, folder, "--samples", 3, "--seed", 5) == 2
    error = capsys.readouterr().err
    assert "an unfinished build with seed 0 (asked: 5)" in error
    assert "another folder" in error

    shutil.copytree(source, source.with_name("copy"))
    (source / "new.jpg").write_bytes(jpeg(99))
    assert glci("shards", "build", source, folder, "--samples", 3) == 2
    assert "an unfinished build of 61 photos" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_two_builds_at_a_time_in_one_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "photos", some_photos(4))
    (tmp_path / "s").mkdir()
    first = BuildJournal(tmp_path / "s")
    assert glci("shards", "build", source, tmp_path / "s", "--processes", 1) == 2
    assert "another build is writing" in capsys.readouterr().err
    first.close()
    assert glci("shards", "build", source, tmp_path / "s", "--processes", 1) == 0


def test_a_build_that_cannot_write_says_so_and_keeps_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_folder(tmp_path / "photos", some_photos(4))
    build = ("shards", "build", source, tmp_path / "s", "--samples", 2, "--processes", 1)
    in_the_way = tmp_path / "s" / "shard-000001.tar.samples.npy"
    in_the_way.mkdir(parents=True)
    assert glci(*build) == 2
    assert "shard-000001.tar cannot be written" in capsys.readouterr().err
    in_the_way.rmdir()
    assert glci(*build) == 0
    assert load_index(str(tmp_path / "s")).total == 4
