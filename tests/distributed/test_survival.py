"""What a cluster does to a run: it is stopped and replaced, a rank hangs, a disk is full, a signal comes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glci_dist.checkpoints.manifest import folders, read
from tests.commands import started
from tests.disks import fill_disk, small_disk
from tests.journal import read_journal
from tests.small_run import final_files, newest_in, small, train_to_its_end
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
SPEAKING = ("monitor.progress=true", "monitor.scalars_every=1")


def wait_until(condition: Callable[[], Any], what: str, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(run) if event["event"] == kind]


def undisturbed(shards: str, folder: Path, steps: tuple[int, int, int]) -> dict[str, bytes]:
    assert run_world(2, train_to_its_end, small(shards, folder, steps=steps)) == ["", ""]
    return final_files(folder / "run", sum(steps))


@pytest.mark.parametrize("stage", ["commit", "delete"])
def test_an_attempt_that_was_stopped_while_a_newer_one_began_leaves_no_trace(
    faces_shards: str, tmp_path: Path, stage: str
) -> None:
    steps = (24, 2, 2)
    run = tmp_path / "run"
    overrides = small(faces_shards, tmp_path, steps=steps, extra=("checkpoints.every=5", "checkpoints.keep=2"))
    frozen = {"CHAOS_AIM": f"{stage}:2:0", "CHAOS_SIGNAL": "STOP", "CHAOS_STEP": str(tmp_path / "step")}
    with started(overrides, size=2, log=tmp_path / "old", module="tests.chaos.rank", environment=frozen) as old:
        # Between the manifest and the rename, or before what it deletes is renamed.
        wait_until(lambda: _state(old.ranks[0].pid) == "T", "the older attempt stopped")
        with started(overrides, size=2, log=tmp_path / "new") as new:
            assert new.exit_codes() == [0, 0], new.said()
        after = final_files(run, sum(steps))
        journal = read_journal(run)
        os.killpg(old.ranks[0].pid, signal.SIGCONT)
        codes = old.exit_codes(seconds=60)

    assert codes == [4, 4], old.said()
    assert "attempt 1 of" in old.said()
    assert "attempt 2 (process" in old.said()
    assert "Traceback" not in old.said(0) + old.said(1)
    assert read_journal(run) == journal
    assert final_files(run, sum(steps)) == after
    began = next(place for place, event in enumerate(journal) if event["event"] in ("start", "resume") and place)
    assert {event["attempt"] for event in journal[:began]} == {1}
    assert {event["attempt"] for event in journal[began:]} == {2}
    kept = [read(path).manifest for _, path in folders(run / "checkpoints")]
    assert {manifest.attempt for manifest in kept} == {2}
    assert after == undisturbed(faces_shards, tmp_path / "undisturbed", steps)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_hangs_is_named_with_the_collective_by_the_one_that_waits(
    faces_shards: str, tmp_path: Path, stopped: int
) -> None:
    extra = (*SPEAKING, "engine.timeout_s=4")
    overrides = small(faces_shards, tmp_path, steps=(4000, 0, 0), extra=extra)
    waiting = 1 - stopped
    with started(overrides, size=2, log=tmp_path / "log") as command:
        command.wait_for("completion: step 1/")
        command.ranks[stopped].send_signal(signal.SIGSTOP)
        assert command.ranks[waiting].wait(60) == 1
        said = command.said(waiting)
    line = next(line for line in said.splitlines() if line.startswith("glci: fault:"))
    assert f"rank {waiting} on " in line
    assert "engine.timeout_s=4" in line
    assert any(name in line for name in ("batch norm", "gradient", "all-reduce of a step")), line
    if stopped:
        assert "not there: rank 1 on" in line
        assert "no sign of life" in line
        (failed,) = events(tmp_path / "run", "failed")
        assert failed["reason"] in line
    else:
        # The store was in the process that was stopped.
        assert "not there: rank 0 (no word of it" in line
    assert "Traceback" not in said


@pytest.mark.parametrize(("stage", "seconds"), [("write", 12), ("verify", 14)])
def test_a_disk_that_takes_longer_than_the_time_out_is_waited_for(
    faces_shards: str, tmp_path: Path, stage: str, seconds: int
) -> None:
    extra = ("checkpoints.every=4", "checkpoints.keep=2", "engine.timeout_s=4", *SPEAKING)
    overrides = small(faces_shards, tmp_path, steps=(7, 0, 0), extra=extra)
    environment = {"CHAOS_SLOW": f"{stage}:{seconds}", "CHAOS_STEP": str(tmp_path / "step")}
    chaos: dict[str, Any] = {"module": "tests.chaos.rank", "environment": environment}
    with started(overrides, size=2, log=tmp_path / "log", **(chaos if stage == "write" else {})) as command:
        assert command.exit_codes() == [0, 0], command.said(0) + command.said(1)
    assert _newest_step(tmp_path / "run") == 7
    if stage == "verify":
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000007")
        with started(overrides, size=2, log=tmp_path / "again", **chaos) as command:
            assert command.exit_codes() == [0, 0], command.said(0) + command.said(1)
            assert "and goes on waiting: not there: rank 0 on" in command.said(1)
            assert "(alive, in verifying checkpoints" in command.said(1)


def test_a_second_interrupt_ends_a_rank_that_waits_in_a_collective(faces_shards: str, tmp_path: Path) -> None:
    overrides = small(faces_shards, tmp_path, steps=(4000, 0, 0), extra=SPEAKING)
    with started(overrides, size=2, log=tmp_path / "log") as command:
        command.wait_for("completion: step 1/")
        command.ranks[1].send_signal(signal.SIGSTOP)
        time.sleep(1)
        command.ranks[0].send_signal(signal.SIGINT)
        time.sleep(1)
        assert command.ranks[0].poll() is None
        command.ranks[0].send_signal(signal.SIGINT)
        assert command.ranks[0].wait(10) == 130
        assert "glci: stopped at once" in command.said()
        assert "Traceback" not in command.said()
    (failed,) = events(tmp_path / "run", "failed")
    assert failed["reason"] == "stopped at once"


def test_a_signal_to_rank_1_alone_ends_the_run_within_a_step_and_a_write(faces_shards: str, tmp_path: Path) -> None:
    step_file = tmp_path / "step"
    overrides = small(faces_shards, tmp_path, steps=(4000, 0, 0), extra=("checkpoints.every=0", *SPEAKING))
    environment = {"CHAOS_STEP": str(step_file)}
    with started(
        overrides, size=2, log=tmp_path / "log", module="tests.chaos.rank", environment=environment
    ) as command:
        wait_until(lambda: step_file.exists() and int(step_file.read_bytes() or b"-1") >= 20, "step 20")
        start = time.monotonic()
        command.ranks[1].send_signal(signal.SIGUSR2)
        in_hand = int(step_file.read_bytes())
        assert command.exit_codes() == [3, 3], command.said()
        seconds = time.monotonic() - start
    saved = newest_in(tmp_path / "run" / "checkpoints")
    assert saved is not None
    # The step in hand is finished; where the signal came after its all-reduce, one more is run.
    assert 0 <= saved.step - (in_hand + 1) <= 1
    (told,) = events(tmp_path / "run", "signal")
    assert told["signals"] == [None, "SIGUSR2"]
    (stopped,) = events(tmp_path / "run", "stopped")
    print(f"in step {in_hand}, saved before {saved.step}; {stopped['seconds']} s to the save, {seconds:.2f} s to exit")
    assert 0 < stopped["seconds"] <= seconds


def test_past_the_configured_time_a_stopping_run_ends_unsaved_and_says_so(faces_shards: str, tmp_path: Path) -> None:
    overrides = small(faces_shards, tmp_path, steps=(4000, 0, 0), extra=(*SPEAKING, "checkpoints.stop_within_s=2"))
    with started(overrides, size=2, log=tmp_path / "log") as command:
        command.wait_for("completion: step 1/")
        # The other rank can agree to nothing.
        command.ranks[1].send_signal(signal.SIGSTOP)
        command.ranks[0].send_signal(signal.SIGTERM)
        assert command.ranks[0].wait(60) == 3
        assert "stopped without saving: it took more than checkpoints.stop_within_s=2" in command.said()
    assert newest_in(tmp_path / "run" / "checkpoints") is None
    (failed,) = events(tmp_path / "run", "failed")
    assert failed["reason"].startswith("stopped without saving")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mib=8) as folder:
        yield folder


def test_a_full_disk_costs_no_checkpoint_and_no_step_and_saving_goes_on_when_there_is_room(
    faces_shards: str, tmp_path: Path, disk: Path
) -> None:
    steps = (120, 2, 2)
    run = disk / "run"
    extra = ("checkpoints.every=5", "checkpoints.keep=2", *SPEAKING)
    overrides = small(faces_shards, disk, steps=steps, extra=extra)
    filler = disk / "filler"
    with started(overrides, size=2, log=tmp_path / "log") as command:
        wait_until(lambda: len(folders(run / "checkpoints")) == 2, "two checkpoints", seconds=60)
        fill_disk(filler)
        command.wait_for("could not be written")
        kept = newest_in(run / "checkpoints")
        assert kept is not None
        told = command.said().count("could not be written")
        wait_until(lambda: command.said().count("could not be written") > told, "training went on")
        still = newest_in(run / "checkpoints")
        assert still is not None
        assert still.step >= kept.step
        filler.unlink()
        wait_until(lambda: _newest_step(run) > still.step + 10, "saving went on")
        assert command.exit_codes() == [0, 0], command.said()
        assert "Traceback" not in command.said(0) + command.said(1)
    failed, saved = events(run, "checkpoint-failed"), events(run, "checkpoint")
    assert failed
    assert all("No space left" in event["reason"] for event in failed)
    assert saved[-1]["step"] == sum(steps) > failed[-1]["step"]
    # None of what could not be finished is left.
    assert not list((run / "attempts").glob("*/*ing"))
    assert final_files(run, sum(steps)) == undisturbed(faces_shards, tmp_path / "undisturbed", steps)


def test_checkpoints_that_cannot_be_removed_are_told_of_once_and_all_are_kept(
    faces_shards: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    extra = ("checkpoints.every=5", "checkpoints.keep=2", "checkpoints.run_ahead=0", *SPEAKING)
    overrides = small(faces_shards, tmp_path, steps=(60, 0, 0), extra=extra)
    first = run / "checkpoints" / "step-00000005"
    with started(overrides, size=1, log=tmp_path / "log") as command:
        wait_until(first.exists, "the first checkpoint")
        # What something is mounted on cannot be renamed.
        mounted = subprocess.run(["mount", "--bind", first, first], capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"cannot mount a file system here: {mounted.stderr.strip()}")
        try:
            assert command.exit_codes() == [0], command.said()
        finally:
            subprocess.run(["umount", "-l", first], check=True)
    (failed,) = events(run, "retention-failed")
    assert failed["reason"] == f"{first}: Device or resource busy"
    assert command.said().count(f"cannot be removed ({first}: Device or resource busy)") == 1
    assert len(folders(run / "checkpoints")) == 12


def _newest_step(run: Path) -> int:
    return next((step for step, _ in folders(run / "checkpoints")), -1)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
