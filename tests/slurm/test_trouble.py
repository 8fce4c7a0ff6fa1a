"""What no restart helps: it ends clearly, says what, where and why, and goes on once that is mended."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glci_dist.slurm.launcher import samples_of
from glci_dist.slurm.refusals import refusals
from glci_dist.slurm.submit import requests
from tests.slurm.box import EVERY, Box, Job, furthest_loss, glci, overrides
from tests.slurm.trouble import crash_in_step, hide_on
from tests.small_run import fill_disk

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]


def goes_on(box: Box, job: Job, undisturbed: Path) -> None:
    """Submitted again, with one worker a node, it comes to the end of an undisturbed run."""
    again = box.submit(job.run.parent, "cluster.workers=1")
    assert again.wait_for_end() == "COMPLETED", again.output()
    assert furthest_loss(job.run, undisturbed) < 1e-4


def test_a_batch_that_crashes_every_time_ends_the_job_with_step_samples_and_cause(box: Box, tmp_path: Path) -> None:
    start = time.monotonic()
    job = box.submit(tmp_path, crash_in_step(7, tmp_path / "custom"), "cluster.workers=1")
    assert job.wait_for_end() == "FAILED", job.output()
    print(f"given up {time.monotonic() - start:.0f} s after the submission")
    attempts = job.account().attempts
    assert [attempt.reached for attempt in attempts][-1] in (6, 7)
    assert len(attempts) == 3
    said = glci("status", str(job.run)).stdout
    assert said.count("died: rank 1 on glci-n2: RuntimeError: the device fell off the bus") == 2
    samples = samples_of(overrides(box.shards, tmp_path), 7)
    assert len(samples) == 4
    for part in ("failed:", "in a row in step 7", "RuntimeError: the device fell off the bus", *samples):
        assert part in said, said
        assert part == "failed:" or part in job.output()


def test_shards_that_one_node_cannot_read_end_the_job_and_name_the_node(
    box: Box, tmp_path: Path, undisturbed: Path
) -> None:
    job = box.submit(tmp_path, hide_on("glci-n2", box.shards, tmp_path / "custom"), "cluster.workers=1")
    assert job.wait_for_end() == "FAILED", job.output()
    said = glci("status", str(job.run)).stdout
    assert "failed:" in said
    assert "on glci-n2: " in said
    assert "holds no index.json" in said
    # Mended, the same run is submitted again.
    goes_on(box, job, undisturbed)


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
    box: Box, tmp_path: Path, small_disk: Path, undisturbed: Path
) -> None:
    job = box.submit(small_disk, "cluster.workers=1")
    job.wait_for_checkpoint(2 * EVERY)
    filler = small_disk / "filler"
    fill_disk(filler)
    assert job.wait_for_end() == "FAILED", job.output()
    filler.unlink()
    said = glci("status", str(job.run)).stdout
    print(said)
    assert "failed:" in said
    assert "on glci-n1: " in said
    assert "No space left on device" in said
    goes_on(box, job, undisturbed)


def test_an_impossible_request_is_refused_before_it_is_queued(box: Box, tmp_path: Path) -> None:
    words = ["cluster=box", *overrides(box.shards, tmp_path)]
    # `glci explain` asks the same.
    done = glci("submit", *words, "cluster.partition=nowhere", "cluster.workers=3")
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert "Invalid partition name specified" in line
    assert "cluster.partition=nowhere" in line
    assert "share the global batch evenly" in line
    assert not (tmp_path / "run").exists()
    assert not subprocess.run(["squeue", "-h"], capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("cluster.cpus=99", "Requested node configuration is not available"),
        ("cluster.memory_gb=900", "Requested node configuration is not available"),
        ("cluster.constraint=h100", "Invalid feature specification"),
        ("cluster.nodes=4", "share the global batch evenly"),
    ],
)
def test_each_reason_for_a_refusal_is_found(box: Box, tmp_path: Path, override: str, reason: str) -> None:
    (said,) = refusals(requests(["cluster=box", *overrides(box.shards, tmp_path), override]))
    assert reason in said
