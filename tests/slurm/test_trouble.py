"""What no restart helps: it ends clearly, says what, where and why, and goes on once that is mended."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glci_dist.runs.journal import read_journal
from glci_dist.slurm.launcher import samples_of
from tests.slurm.box import EVERY, STEPS, Box, final_files, glci, overrides, wait_until
from tests.slurm.trouble import crash_in_step, hide_on
from tests.small_run import fill_disk

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]


def test_a_batch_that_crashes_every_time_ends_the_job_with_step_samples_and_cause(box: Box, tmp_path: Path) -> None:
    start = time.monotonic()
    job = box.submit(tmp_path, crash_in_step(7, tmp_path / "custom"))
    assert job.wait_for_end() == "FAILED", job.output()
    print(f"given up {time.monotonic() - start:.0f} s after the submission")
    attempts = job.account().attempts
    assert [attempt.reached for attempt in attempts][-1] in (6, 7)
    assert len(attempts) == 3
    said = glci("status", str(job.run)).stdout
    samples = samples_of(overrides(box.shards, tmp_path), 7)
    assert len(samples) == 4
    for part in ("failed:", "in a row in step 7", "RuntimeError: the device fell off the bus", *samples):
        assert part in said, said
        assert part == "failed:" or part in job.output()


def test_shards_that_one_node_cannot_read_end_the_job_and_name_the_node(
    box: Box, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    job = box.submit(tmp_path, hide_on("glci-n2", box.shards, tmp_path / "custom"))
    assert job.wait_for_end() == "FAILED", job.output()
    said = glci("status", str(job.run)).stdout
    assert "failed:" in said
    assert "on glci-n2: " in said
    assert "holds no index.json" in said
    # Mended, the same run is submitted again.
    again = box.submit(tmp_path)
    assert again.wait_for_end() == "COMPLETED", again.output()
    assert final_files(job.run, sum(STEPS)) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_the_job_and_names_the_host_and_it_goes_on_when_there_is_room(
    box: Box, tmp_path: Path, small_disk: Path, expected: dict[str, bytes]
) -> None:
    job = box.submit(small_disk)
    job.wait_for_step(2 * EVERY)
    filler = small_disk / "filler"
    fill_disk(filler)
    assert job.wait_for_end() == "FAILED", job.output()
    filler.unlink()
    failed = job.events("checkpoint-failed")
    told = glci("status", str(job.run)).stdout
    print(told)
    assert "glci-n" in "".join(event["reason"] for event in failed) or "No space left" in told
    again = box.submit(small_disk)
    assert again.wait_for_end() == "COMPLETED", again.output()
    assert final_files(job.run, sum(STEPS)) == expected


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("cluster.partition=nowhere", "Invalid partition name specified"),
        ("cluster.cpus=99", "Requested node configuration is not available"),
        ("cluster.memory_gb=900", "Requested node configuration is not available"),
        ("cluster.constraint=h100", "Invalid feature specification"),
        ("cluster.workers=3", "share the global batch evenly"),
        ("cluster.nodes=4", "share the global batch evenly"),
    ],
)
def test_an_impossible_request_is_refused_before_it_is_queued(
    box: Box, tmp_path: Path, override: str, reason: str
) -> None:
    words = ["cluster=box", *overrides(box.shards, tmp_path), override]
    for command in ("submit", "explain"):
        done = glci(command, *words)
        assert done.returncode == 2, done.stdout
        (line,) = done.stderr.strip().splitlines()
        assert reason in line
    assert not (tmp_path / "run").exists()
    assert not subprocess.run(["squeue", "-h"], capture_output=True, check=True).stdout


def test_a_node_that_is_cut_off_runs_on_and_reaches_nothing_of_the_run(
    box: Box, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    job = box.submit(tmp_path)
    job.wait_for_step(2 * EVERY)
    (lease,) = [json.loads(path.read_text()) for path in (job.run / "attempts").glob("*.json")]
    start = time.time()
    box.act("cut", lease["host"])
    job.wait_for_step(0, attempt=2, seconds=120)
    resumed = job.events("resume")[0]
    still_there = box.ranks(lease["host"])
    wait_until(lambda: time.time() - start > 60, "60 s are over")
    box.act("heal", lease["host"])
    print(f"resumed elsewhere {resumed['time'] - start:.1f} s after the cut; cut off still: {len(still_there)} ranks")
    assert job.wait_for_end() == "COMPLETED", job.output()
    journal = read_journal(job.run)
    place = next(place for place, event in enumerate(journal) if event["attempt"] == 2)
    assert {event["attempt"] for event in journal[:place]} == {1}
    assert 1 not in {event["attempt"] for event in journal[place:]}
    assert all(attempt.lost_steps <= EVERY + 1 for attempt in job.account().attempts)
    assert final_files(job.run, sum(STEPS)) == expected
