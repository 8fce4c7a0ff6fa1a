"""What is rare: hangs, nodes that lose one another, signals in a start. For `make chaos-slurm`: they wait long."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.box import CONF, EVERY, STEPS, Box, completes, glci, wait_until
from tests.slurm.trouble import slow_start
from tests.small_run import final_files

pytestmark = [pytest.mark.slurm, pytest.mark.chaos, pytest.mark.timeout(420)]

HANG_S = 15
"""Long enough for what a rank does between two collectives here, its first step included."""


def test_a_rank_that_hangs_is_named_by_those_that_wait_and_the_workers_start_again(
    box: Box, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    job = box.submit(tmp_path, f"engine.timeout_s={HANG_S}")
    job.wait_for_checkpoint(2 * EVERY)
    (victim, _) = box.ranks("glci-n2")
    start = time.time()
    os.kill(victim, signal.SIGSTOP)
    job.wait_for_attempt(2)
    hang = job.crashes()[0]
    print(f"engine.timeout_s={HANG_S}:", job.figures(start, detected=hang["time"]))
    completes(job)
    assert len({(attempt.job, attempt.restart) for attempt in job.account().attempts}) == 1
    assert re.search(r"waited .* not there: .*rank 2 on glci-n2 \(no sign of life", hang["cause"]), hang
    assert f"died: {hang['cause']}" in glci("status", str(job.run)).stdout
    assert final_files(job.run, sum(STEPS)) == expected


@pytest.fixture
def patient_scheduler() -> Iterator[None]:
    """It does not notice within these tests that a node is lost."""
    conf, before = CONF.read_text(), "SlurmdTimeout=6"
    assert before in conf
    CONF.write_text(conf.replace(before, "SlurmdTimeout=300"))
    try:
        subprocess.run(["scontrol", "reconfigure"], check=True)
        yield
    finally:
        CONF.write_text(conf)
        subprocess.run(["scontrol", "reconfigure"], check=True)


def test_nodes_that_lose_one_another_go_on_where_the_scheduler_does_not_notice(
    box: Box, tmp_path: Path, expected_of_two: dict[str, bytes], patient_scheduler: None
) -> None:
    job = box.submit(tmp_path, "cluster.workers=1", f"engine.timeout_s={HANG_S}", "cluster.node_timeout_s=15")
    job.wait_for_checkpoint(2 * EVERY)
    start = time.time()
    box.act("cut", "glci-n2")
    wait_until(lambda: time.time() - start > 40, "40 s are over", seconds=50)
    box.act("heal", "glci-n2")
    job.wait_for_attempt(2)
    print(job.figures(start, detected=job.crashes()[0]["time"]))
    assert "the nodes lost one another" in job.output()
    completes(job)
    assert job.account().attempts[-1].restart == 1
    told = glci("status", str(job.run)).stdout
    assert re.search(r"died: the nodes lost one another .*not there: .*glci-n2", told), told
    assert final_files(job.run, sum(STEPS)) == expected_of_two


def test_a_warning_to_one_node_while_the_launchers_start_is_not_lost(
    box: Box, tmp_path: Path, expected_of_two: dict[str, bytes]
) -> None:
    job = box.submit(tmp_path, "cluster.workers=1")
    (launcher,) = wait_until(lambda: box.launchers("glci-n2"), "a launcher on the second node")
    start = time.time()
    # The first node may have been without one yet, and waits for the second then.
    os.kill(launcher, signal.SIGUSR2)
    job.wait_for_attempt(1)
    print(f"warned before there was anything to save: first step after {time.time() - start:.1f} s")
    assert job.account().attempts[0].restart == 1
    assert "no attempt: stopped by SIGUSR2" in glci("status", str(job.run)).stdout
    completes(job)
    assert final_files(job.run, sum(STEPS)) == expected_of_two


def test_a_job_whose_starts_all_end_before_a_step_is_given_up(box: Box, tmp_path: Path) -> None:
    start = time.monotonic()
    job = box.submit(tmp_path, "cluster.workers=1", slow_start(60, tmp_path / "custom"))
    for number in range(3):
        wait_until(
            lambda: job.restarts == number and all(box.launchers(node) for node in ("glci-n1", "glci-n2")),  # noqa: B023
            f"start {number}",
        )
        # As at a time limit that is shorter than the start.
        subprocess.run(["scancel", "--signal=USR2", job.number], check=True)
    assert job.wait_for_end() == "FAILED", job.output()
    print(f"given up {time.monotonic() - start:.0f} s after the submission")
    said = glci("status", str(job.run)).stdout
    for part in ("failed:", "3 starts in a row brought no checkpoint after step 0 (cluster.idle_starts)"):
        assert part in said, said
