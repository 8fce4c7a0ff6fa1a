"""A rank that hangs, nodes that lose one another: nobody is told. `make chaos-slurm` runs these, as they wait long."""

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
