"""`glci status` and `glci cancel` tell the truth whatever the job is doing; what a job runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.slurm.box import Box, glci, overrides, state, wait_until
from tests.slurm.trouble import tell_code

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]


def test_a_run_is_told_as_it_is_from_the_queue_to_its_cancelling_and_after_slurm_forgot_it(
    box: Box, tmp_path: Path
) -> None:
    subprocess.run(["sbatch", "-Q", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 600"], check=True)
    code = tmp_path / "custom" / "code"
    job = box.submit(tmp_path, tell_code(code.parent), "cluster.workers=1", steps=(4000, 0, 0))
    assert state(job.run) == "queued"
    assert "waits (" in glci("status", str(job.run)).stdout
    subprocess.run(["scancel", "--user=root", "--state=RUNNING"], check=True)
    wait_until(lambda: state(job.run) == "starting", "the job starts")
    job.wait_for_step(3)
    assert state(job.run) == "running"
    assert "img/s" in glci("status", str(job.run)).stdout
    # A copy of the code runs, not this checkout.
    assert code.read_text().startswith(f"{job.run}/code/")
    again = glci("submit", "cluster=box", *overrides(box.shards, tmp_path, steps=(4000, 0, 0)))
    assert again.returncode == 2
    assert f"has job {job.number} in the queue already" in again.stderr

    cancelled = glci("cancel", str(job.run))
    assert cancelled.returncode == 0, cancelled.stderr
    assert "to go on: glci submit" in cancelled.stdout
    job.wait_for_end()
    assert state(job.run) == "cancelled"
    assert "has ended already" in glci("cancel", str(job.run)).stdout
    (stopped,) = job.events("stopped")
    assert stopped["step"] >= 3

    record = job.run / "jobs" / "submitted.jsonl"
    record.write_text(record.read_text().replace(f'"job": "{job.number}"', '"job": "987654"'))
    assert state(job.run) == "died"
    assert "knows job 987654 no more: submit again to go on" in glci("status", str(job.run)).stdout
