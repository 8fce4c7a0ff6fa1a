"""What a cluster does to a run, on a real one: each ends COMPLETED, with the weights of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.journal import read_journal
from tests.slurm.box import EVERY, NODES, STEPS, Box, completes, furthest_loss, glci, wait_until
from tests.slurm.trouble import crash_on, slow_steps
from tests.small_run import final_files

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]


def test_a_submitted_run_completes_with_the_weights_that_torchrun_gives_and_names_a_slow_node(
    box: Box, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    start = time.monotonic()
    slow = slow_steps(0.5, tmp_path / "custom", hosts=["glci-n2"], until=20)
    job = box.submit(tmp_path, slow, "monitor.straggler_s=3")
    completes(job)
    print(f"{time.monotonic() - start:.0f} s from the submission to the end")
    (attempt,) = job.account().attempts
    assert (attempt.ranks, attempt.lost_steps) == (4, 0)
    assert final_files(job.run, sum(STEPS)) == expected
    # On a machine that others use too, another may be slow later.
    named = job.events("straggler")[0]
    print(f"named after {named['step']} steps of 0.5 s more, at {named['ratio']:.1f} times the others' time")
    assert named["slowest"] == "glci-n2"
    assert named["step"] < 20
    board = EventAccumulator(str(job.run / "tensorboard"))
    board.Reload()
    told = [point.value for point in board.Scalars("time/slowest_host_ratio")]
    assert any(ratio == pytest.approx(named["ratio"], abs=1e-3) for ratio in told)  # the journal rounds


def test_a_killed_rank_restarts_the_workers_inside_the_allocation(
    box: Box, tmp_path: Path, expected_of_two: dict[str, bytes]
) -> None:
    job = box.submit(tmp_path, "cluster.workers=1")
    job.wait_for_checkpoint(2 * EVERY)
    (victim,) = box.ranks("glci-n2")
    start = time.time()
    os.kill(victim, signal.SIGKILL)
    job.wait_for_attempt(2)
    (crash,) = job.crashes()
    print(job.figures(start, detected=crash["time"]))
    completes(job)
    first, second = job.account().attempts
    assert second.resumed_at >= 2 * EVERY
    assert (first.job, first.restart) == (second.job, second.restart)
    assert "Signal 9 (SIGKILL)" in crash["cause"]
    assert first.reached - 1 <= crash["step"] <= first.reached + 1
    assert f"died: {crash['cause']}" in glci("status", str(job.run)).stdout
    assert final_files(job.run, sum(STEPS)) == expected_of_two


_TAKE_PORTS = """
import socket, sys, time
taken = [socket.create_server(("", 29400 + (int(sys.argv[1]) + place) % 1000)) for place in range(40)]
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture
def taken_ports() -> Iterator[None]:
    """On every node another program listens at the ports where the next jobs would meet."""
    asked = ["sbatch", "--parsable", "--output=/dev/null", "--wrap=true"]
    last = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    programs = [
        subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{node}", sys.executable, "-c", _TAKE_PORTS, last],
            stdout=subprocess.PIPE,
            text=True,
        )
        for node in NODES
    ]
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "taken\n"
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


@pytest.mark.parametrize("place", [pytest.param(0, marks=pytest.mark.chaos, id="first"), pytest.param(1, id="second")])
def test_a_killed_launcher_is_as_a_lost_node_and_nodes_meet_at_a_port_that_is_free(
    box: Box, tmp_path: Path, expected_of_two: dict[str, bytes], taken_ports: None, place: int
) -> None:
    job = box.submit(tmp_path, "cluster.workers=1")
    job.wait_for_checkpoint(EVERY, seconds=60)
    assert "ports are taken on this node: the nodes meet at port" in job.output()
    victim, start = job.nodes[place], time.time()
    (launcher,) = box.launchers(victim)
    os.kill(launcher, signal.SIGKILL)
    job.wait_for_attempt(2)
    print(f"the launcher of node {place}: next step after {time.time() - start:.1f} s")
    completes(job)
    assert [attempt.restart for attempt in job.account().attempts] == [0, 1]
    assert f"a launcher was killed: {victim} (Killed)" in glci("status", str(job.run)).stdout
    assert final_files(job.run, sum(STEPS)) == expected_of_two


def test_a_killed_batch_host_is_replaced_and_without_another_node_it_goes_on_with_fewer(
    box: Box, tmp_path: Path, undisturbed: Path
) -> None:
    job = box.submit(tmp_path)
    job.wait_for_checkpoint(2 * EVERY)
    assert job.nodes == ["glci-n1", "glci-n2"]
    start = time.time()
    box.act("kill", "glci-n1")
    job.wait_for_attempt(2)
    print("the batch host:", job.figures(start, detected=box.down_since("glci-n1", start)))
    assert "glci-n1" not in job.nodes

    job.wait_for_checkpoint(4 * EVERY)
    stays, lost = job.nodes
    for spare in {"glci-n2", "glci-n3", "glci-n4"} - {stays, lost}:
        subprocess.run(["scontrol", "update", f"nodename={spare}", "state=drain", "reason=test"], check=True)
    start = time.time()
    box.act("kill", lost)
    job.wait_for_attempt(3)
    print("another:", job.figures(start, detected=box.down_since(lost, start)))
    assert job.nodes == [stays]
    completes(job)
    assert [attempt.ranks for attempt in job.account().attempts] == [4, 4, 2]
    told = glci("status", str(job.run)).stdout
    assert "died: glci-n1 was lost" in told
    assert f"died: {lost} was lost" in told
    furthest = furthest_loss(job.run, undisturbed)
    print(f"losses of all steps within {furthest:.1e} of the undisturbed run's")
    assert furthest < 1e-4


def test_a_node_on_which_ranks_crash_again_and_again_is_left_out_and_named(
    box: Box, tmp_path: Path, undisturbed: Path
) -> None:
    job = box.submit(tmp_path, crash_on("glci-n2", tmp_path / "custom"), "cluster.workers=1")
    wait_until(lambda: len(job.crashes()) == 3, "three crashes")
    start = job.crashes()[-1]["time"]
    job.wait_for_attempt(4)
    print("after the third crash:", job.figures(start, detected=start))
    assert "glci-n2" not in job.nodes
    completes(job)
    assert [attempt.restart for attempt in job.account().attempts] == [0, 0, 0, 1]
    told = glci("status", str(job.run)).stdout
    assert "3 crashes in a row began on glci-n2" in told
    assert "the job goes on without glci-n2" in told
    assert told.count("died: rank 1 on glci-n2: RuntimeError: the device fell off the bus") == 2
    assert ", without glci-n2" in job.output()
    assert furthest_loss(job.run, undisturbed) < 1e-4


def test_a_requeue_without_a_signal_goes_on_from_the_last_checkpoint(
    box: Box, tmp_path: Path, expected_of_two: dict[str, bytes]
) -> None:
    job = box.submit(tmp_path, "cluster.workers=1")
    job.wait_for_checkpoint(2 * EVERY)
    start = time.time()
    subprocess.run(["scontrol", "requeue", job.number], check=True)
    job.wait_for_attempt(2)
    # What the scheduler sends before it kills is a signal too: nothing is lost where it leaves time for a save.
    print(job.figures(start, detected=job.events("signal")[0]["time"]))
    completes(job)
    assert final_files(job.run, sum(STEPS)) == expected_of_two


def test_a_preempted_run_makes_room_within_the_grace_time_and_resumes(
    box: Box, tmp_path: Path, expected_of_two: dict[str, bytes]
) -> None:
    job = box.submit(tmp_path, "cluster.workers=1")
    job.wait_for_checkpoint(2 * EVERY)
    start = time.time()
    command = ["sbatch", "--parsable", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 8"]
    high = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    state = ["squeue", "-h", "-j", high, "-o", "%T"]
    wait_until(
        lambda: subprocess.run(state, capture_output=True, text=True, check=True).stdout.strip() == "RUNNING",
        "the high job runs",
        seconds=60,
    )
    seconds = time.time() - start
    print(f"the high job started after {seconds:.1f} s (GraceTime is 10 s)")
    assert seconds < 10
    (stopped,) = job.events("stopped")
    job.wait_for_attempt(2)
    print(job.figures(start, detected=job.events("signal")[0]["time"]), "(8 s of them the high job's)")
    completes(job, lost=0)
    assert job.account().attempts[1].resumed_at == stopped["step"]
    assert final_files(job.run, sum(STEPS)) == expected_of_two


def test_a_node_that_is_cut_off_runs_on_and_reaches_nothing_of_the_run(
    box: Box, tmp_path: Path, expected_of_two: dict[str, bytes]
) -> None:
    # Its ranks wait for each other until long after the next attempt has begun.
    job = box.submit(tmp_path, "cluster.workers=1", "engine.timeout_s=300")
    job.wait_for_checkpoint(2 * EVERY)
    (lease,) = [json.loads(path.read_text()) for path in (job.run / "attempts").glob("*.json")]
    start = time.time()
    box.act("cut", lease["host"])
    job.wait_for_attempt(2)
    # It lives on while the next one runs.
    still_there = box.ranks(lease["host"])
    assert still_there
    assert len(list((job.run / "attempts").glob("*.json"))) == 2
    box.act("heal", lease["host"])
    detected = box.down_since(lease["host"], start)
    print(f"{job.figures(start, detected=detected)}; cut off still: {len(still_there)} ranks")
    completes(job)
    journal = read_journal(job.run)
    place = next(place for place, event in enumerate(journal) if event["attempt"] == 2)
    assert {event["attempt"] for event in journal[:place]} == {1}
    assert 1 not in {event["attempt"] for event in journal[place:]}
    assert final_files(job.run, sum(STEPS)) == expected_of_two
