"""What no restart helps: it ends clearly, says what, where and why, and goes on once that is mended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from glci_dist.slurm import scheduler
from glci_dist.slurm.asking import patience
from glci_dist.slurm.node_launcher import samples_of
from tests.disks import fill_disk, small_disk
from tests.slurm.box import CONF, EVERY, Box, Job, furthest_loss, glci, overrides
from tests.slurm.trouble import crash_in_step, hide_on

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
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", mib=12) as folder:
        yield folder


def test_a_full_disk_ends_the_job_and_names_the_host_and_it_goes_on_when_there_is_room(
    box: Box, tmp_path: Path, disk: Path, undisturbed: Path
) -> None:
    job = box.submit(disk, "cluster.workers=1")
    job.wait_for_checkpoint(2 * EVERY)
    filler = disk / "filler"
    fill_disk(filler)
    assert job.wait_for_end() == "FAILED", job.output()
    filler.unlink()
    said = glci("status", str(job.run)).stdout
    print(said)
    assert "failed:" in said
    assert "on glci-n1: " in said
    assert "No space left on device" in said
    goes_on(box, job, undisturbed)


@contextmanager
def silent_controller(seconds: float) -> Iterator[None]:
    """The controller takes requests, and answers none of them, for a while."""
    pid = json.loads((CONF.parent / "pids" / "slurmctld.json").read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    back = threading.Timer(seconds, os.kill, (pid, signal.SIGCONT))
    back.start()
    try:
        yield
    finally:
        back.join()


def test_a_controller_that_does_not_answer_for_a_while_is_asked_again_and_gets_each_job_once(
    box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --output=/dev/null\nsleep 100\n")
    with silent_controller(16), patience(100), ThreadPoolExecutor() as threads:
        submission = threads.submit(glci, "submit", "cluster=box", *overrides(box.shards, tmp_path))
        # sbatch's request is in the controller's hands when sbatch gives up.
        number = scheduler.submit(script)
        done = submission.result()
    assert done.returncode == 0, done.stderr
    assert "the scheduler does not answer (squeue: " in done.stderr
    assert "asking again, for 100 s" in capsys.readouterr().err
    told = subprocess.run(["squeue", "-h", "-O", "JobID:|,Command:|"], check=True, capture_output=True, text=True)
    assert [line for line in told.stdout.splitlines() if str(script) in line] == [f"{number}|{script}|"]
