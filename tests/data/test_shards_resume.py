"""A build that was stopped is completed by the same command, and anything else is told what stands there."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shards_help import contents, glci, jpeg, some_photos, write_folder

from glci_dist.data.index import load_index
from glci_dist.data.plan import BuildJournal
from glci_dist.errors import UserError

# A real build in two processes whose main process kills itself when three shards are done.
KILLED_BUILD = """
import os, signal, sys
from glci_dist.cli import main
from glci_dist.data.plan import BuildJournal

add = BuildJournal.add
done = []

def add_and_die_at_three(journal, finished):
    add(journal, finished)
    done.append(finished)
    if len(done) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

BuildJournal.add = add_and_die_at_three
main(sys.argv[1:])
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


@pytest.fixture
def killed(tmp_path: Path) -> tuple[Path, Path]:
    """A source, and a folder in which a build of it was killed."""
    source = write_folder(tmp_path / "photos", {**some_photos(60), "broken.jpg": b"no photo"})
    build = ["shards", "build", str(source), str(tmp_path / "s"), "--samples", "3", "--processes", "2"]
    process = subprocess.Popen([sys.executable, "-c", KILLED_BUILD, *build], start_new_session=True)
    assert process.wait(timeout=60) == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while session_members(process.pid):
        assert time.monotonic() < deadline, "processes of the killed build live on"
        time.sleep(0.02)
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
