"""What a cluster does to a run, on a real one: each ends COMPLETED, with the weights of an undisturbed run."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.slurm.box import EVERY, STEPS, Box, final_files, kill, losses, wait_until
from tests.slurm.trouble import slow_steps

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]


def test_a_submitted_run_completes_with_the_weights_that_torchrun_gives(
    box: Box, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    start = time.monotonic()
    job = box.submit(tmp_path)
    assert job.wait_for_end() == "COMPLETED", job.output()
    (attempt,) = job.account().attempts
    assert (attempt.ranks, attempt.state) == (4, "done")
    assert final_files(job.run, sum(STEPS)) == expected
    print(f"{time.monotonic() - start:.0f} s from the submission to the end")


def test_a_killed_rank_restarts_the_workers_inside_the_allocation(
    box: Box, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    job = box.submit(tmp_path)
    job.wait_for_step(2 * EVERY)
    (victim, _) = box.ranks("glci-n2")
    before, start = job.step(), time.time()
    kill(victim)
    job.wait_for_step(0, attempt=2)
    running = [event for event in job.events("running") if event["attempt"] == 2]
    print(f"the next step ended {running[0]['time'] - start:.1f} s after the kill")
    assert job.wait_for_end() == "COMPLETED", job.output()
    first, second = job.account().attempts
    assert first.lost_steps <= EVERY + 1
    assert second.resumed_at >= before - EVERY
    assert "restart 1" not in job.output()
    assert final_files(job.run, sum(STEPS)) == expected


@pytest.mark.parametrize("node", ["glci-n1", "glci-n2"])
def test_a_killed_node_is_replaced(box: Box, tmp_path: Path, expected: dict[str, bytes], node: str) -> None:
    job = box.submit(tmp_path)
    job.wait_for_step(2 * EVERY)
    assert job.nodes == ["glci-n1", "glci-n2"]
    start = time.time()
    box.act("kill", node)
    job.wait_for_step(0, attempt=2)
    resumed = [event for event in job.events("resume") if event["attempt"] > 1][-1]
    running = [event for event in job.events("running") if event["attempt"] == resumed["attempt"]]
    resumed_s, running_s = (event["time"] - start for event in (resumed, running[0]))
    print(f"resumed {resumed_s:.1f} s after the kill, the next step ended after {running_s:.1f} s")
    assert node not in job.nodes
    assert job.wait_for_end() == "COMPLETED", job.output()
    assert all(attempt.lost_steps <= EVERY + 1 for attempt in job.account().attempts)
    assert final_files(job.run, sum(STEPS)) == expected


def test_a_run_that_loses_a_node_goes_on_with_fewer_where_there_is_no_other(
    box: Box, tmp_path: Path, undisturbed: Path
) -> None:
    job = box.submit(tmp_path)
    job.wait_for_step(2 * EVERY)
    for spare in ("glci-n3", "glci-n4"):
        subprocess.run(["scontrol", "update", f"nodename={spare}", "state=drain", "reason=test"], check=True)
    start = time.time()
    box.act("kill", "glci-n2")
    job.wait_for_step(0, attempt=2)
    assert job.nodes == ["glci-n1"]
    print(f"resumed on one node {job.events('resume')[-1]['time'] - start:.1f} s after the kill")
    assert job.wait_for_end() == "COMPLETED", job.output()
    attempts = job.account().attempts
    assert (attempts[0].ranks, attempts[-1].ranks) == (4, 2)
    assert all(attempt.lost_steps <= EVERY + 1 for attempt in attempts)
    found, wanted = losses(job.run), losses(undisturbed)
    assert found.keys() == wanted.keys()
    furthest = max(abs(found[point] - wanted[point]) / abs(wanted[point]) for point in wanted)
    print(f"losses of all steps within {furthest:.1e} of the undisturbed run's")
    assert furthest < 1e-4


def test_a_requeue_without_a_signal_goes_on_from_the_last_checkpoint(
    box: Box, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    job = box.submit(tmp_path)
    job.wait_for_step(2 * EVERY)
    start = time.time()
    subprocess.run(["scontrol", "requeue", job.number], check=True)
    job.wait_for_step(0, attempt=2)
    resumed = job.events("resume")[-1]
    print(f"resumed {resumed['time'] - start:.1f} s after the requeue, at step {resumed['step']}")
    assert job.wait_for_end() == "COMPLETED", job.output()
    assert all(attempt.lost_steps <= EVERY + 1 for attempt in job.account().attempts)
    assert final_files(job.run, sum(STEPS)) == expected


def test_a_preempted_run_makes_room_within_the_grace_time_and_resumes(
    box: Box, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    job = box.submit(tmp_path)
    job.wait_for_step(2 * EVERY)
    start = time.monotonic()
    command = ["sbatch", "--parsable", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 8"]
    high = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    state = ["squeue", "-h", "-j", high, "-o", "%T"]
    wait_until(
        lambda: subprocess.run(state, capture_output=True, text=True, check=True).stdout.strip() == "RUNNING",
        "the high job runs",
        seconds=60,
    )
    seconds = time.monotonic() - start
    print(f"the high job started after {seconds:.1f} s (GraceTime is 10 s)")
    (stopped,) = job.events("stopped")
    assert job.wait_for_end() == "COMPLETED", job.output()
    first, second = job.account().attempts
    assert (first.lost_steps, second.resumed_at) == (0, stopped["step"])
    assert final_files(job.run, sum(STEPS)) == expected


@pytest.mark.timeout(700)
def test_a_run_longer_than_its_time_limit_queues_itself_again(
    box: Box, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    # The scheduler looks at time limits twice a minute: the signal may come half a minute early. So there are 25 to
    # 55 s for an attempt, its start included, and the run needs 104 s.
    extra = ("cluster.time_min=1", "cluster.signal_lead_s=5", slow_steps(1.3, tmp_path / "custom"))
    job = box.submit(tmp_path, *extra)
    assert job.wait_for_end(seconds=600) == "COMPLETED", job.output()
    attempts = job.account().attempts
    print(f"{len(attempts) - 1} requeues")
    assert len(attempts) >= 3
    assert "Traceback" not in job.output()
    assert all(attempt.lost_steps == 0 for attempt in attempts)
    assert len(job.events("stopped")) == len(attempts) - 1
    assert final_files(job.run, sum(STEPS)) == expected
