"""What no restart helps: it ends clearly, says what, where and why, and goes on once that is mended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from glci_dist.slurm import scheduler
from glci_dist.slurm.asking import Silence, ask, patience
from glci_dist.slurm.launcher import samples_of
from glci_dist.slurm.refusals import refusals
from glci_dist.slurm.submit import requests
from tests.slurm.box import CONF, EVERY, Box, Job, furthest_loss, glci, overrides
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
        (
            "cluster.cpus=99",
            "0 of 4 nodes of partition main would do, 1 are asked for; cluster.cpus=99, and they have 8",
        ),
        ("cluster.memory_gb=900", "Requested node configuration is not available"),
        ("cluster.sbatch={nodelist: glci-n9}", "Invalid node name specified"),
        ("cluster.constraint=h100", "Invalid feature specification"),
        ("cluster.nodes=4", "share the global batch evenly"),
    ],
)
def test_each_reason_for_a_refusal_is_found(box: Box, tmp_path: Path, override: str, reason: str) -> None:
    (said,) = refusals(requests(["cluster=box", *overrides(box.shards, tmp_path), override]))
    assert reason in said


@contextmanager
def changed(change: list[str], back: list[str]) -> Iterator[None]:
    """The cluster as ``scontrol update`` makes it, and as it was."""
    subprocess.run(["scontrol", "update", *change], check=True)
    try:
        yield
    finally:
        subprocess.run(["scontrol", "update", *back], check=True)


@pytest.mark.parametrize(
    ("limit", "back", "reason"),
    [
        ("MaxTime=30", "MaxTime=UNLIMITED", "cluster.time_min=60 is more than the 30 min of partition main (MaxTime)"),
        ("MaxMemPerNode=1000", "MaxMemPerNode=0", "=4096 is more than partition main allows (MaxMemPerNode=1000)"),
        ("MaxCPUsPerNode=2", "MaxCPUsPerNode=UNLIMITED", "cluster.cpus=4 is more than partition main allows"),
        ("AllowAccounts=theirs", "AllowAccounts=ALL", "cluster.account=mine is not among those of partition main"),
    ],
)
def test_what_a_limit_would_let_wait_for_ever_is_refused_with_both_figures(
    box: Box, tmp_path: Path, limit: str, back: str, reason: str
) -> None:
    words = ["cluster=box", *overrides(box.shards, tmp_path), "cluster.account=mine"]
    with changed(["partition=main", limit], ["partition=main", back]):
        (said,) = refusals(requests(words))
        assert reason in said
        # Another partition takes it.
        assert refusals(requests([*words, "cluster.partition='main,high'"])) == []
    assert refusals(requests(words)) == []


def test_what_waits_for_nodes_that_are_drained_for_now_is_queued_and_what_no_node_has_is_refused(
    box: Box, tmp_path: Path
) -> None:
    words = ["cluster=box", *overrides(box.shards, tmp_path)]
    every = "nodename=glci-n[1-4]"
    with changed([every, "state=drain", "reason=swap the fan"], [every, "state=resume"]):
        refused = glci("explain", *words, "cluster.cpus=99")
        assert refused.returncode == 2
        assert "cluster.cpus=99, and they have 8" in refused.stderr
        done = glci("submit", *words)
        assert done.returncode == 0, done.stderr
        assert "it is queued, and waits: 4 of 4 nodes of partition main are drained now (swap the fan)" in done.stdout
        assert "queued:" in glci("status", str(tmp_path / "run")).stdout
    with changed(["partition=main", "state=down"], ["partition=main", "state=up"]):
        assert "partition main is down now" in glci("explain", *words, "name=other").stdout


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
    with silent_controller(16):
        done = glci("submit", "cluster=box", *overrides(box.shards, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "the scheduler does not answer (scontrol: " in done.stderr
    # sbatch's request is in the controller's hands when sbatch gives up.
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#SBATCH --output=/dev/null\nsleep 100\n")
    with silent_controller(11), patience(100):
        number = scheduler.submit(script)
    assert "asking again, for 100 s" in capsys.readouterr().err
    told = subprocess.run(["squeue", "-h", "-O", "JobID:|,Command:|"], check=True, capture_output=True, text=True)
    assert [line for line in told.stdout.splitlines() if str(script) in line] == [f"{number}|{script}|"]


def test_without_the_controller_it_is_said_what_is_the_matter(box: Box, tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    # Nobody listens there.
    conf.write_text(re.sub("SlurmctldHost=.*", "SlurmctldHost=localhost\nSlurmctldPort=9", CONF.read_text()))
    with pytest.MonkeyPatch.context() as patch, patience(3):
        patch.setenv("SLURM_CONF", str(conf))
        with pytest.raises(Silence) as told:
            ask(["squeue"])
    assert str(told.value).startswith("the scheduler does not answer (squeue: ")
    assert "asked again for 3 s" in str(told.value)
    assert "\n" not in str(told.value)
