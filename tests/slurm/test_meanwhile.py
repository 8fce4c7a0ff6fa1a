"""A run that needs more than its time limit takes minutes of sleep; what takes seconds is tested meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from glci_dist.runs.ledger import account
from glci_dist.slurm.asking import Silence, ask, patience
from glci_dist.slurm.preflight import refusals
from glci_dist.slurm.submit import requests
from tests.slurm.box import CONF, STEPS, Box, Job, completes, glci, overrides, state
from tests.slurm.trouble import slow_steps
from tests.small_run import final_files, newest_in

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]
_FEW = (4, 1, 1)
"""Steps of runs that srun starts."""


@pytest.fixture(scope="module", autouse=True)
def limited(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """A run that needs more than its time limit. It takes two minutes of sleep, so the tests before its own run beside.

    The scheduler looks at time limits twice a minute: the signal may come half a minute early. So an attempt has 25 to
    55 s, its start included: the first two cannot end what takes 100 s, and the third has no slow steps.
    """
    folder = tmp_path_factory.mktemp("limited")
    slow = slow_steps(2.5, folder / "custom", restarts=2)
    box.mend()
    job = box.submit(folder, "cluster.workers=1", "cluster.time_min=1", "cluster.signal_lead_s=5", slow)
    with box.kept(job):
        yield job
    box.clear()


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
    assert box.jobs() == []


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
        ("MinNodes=3", "MinNodes=0", "cluster.nodes=2 is less than partition main takes (MinNodes=3)"),
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
        # The run beside this test has nodes of its own, which are drained when it is done with them.
        told = r"it is queued, and waits: 4 of 4 nodes of partition main are (draining, )?drained now \(swap the fan\)"
        assert re.search(told, done.stdout)
        assert "queued:" in glci("status", str(tmp_path / "run")).stdout
    with changed(["partition=main", "state=down"], ["partition=main", "state=up"]):
        assert "partition main is down now" in glci("explain", *words, "name=other").stdout


def test_a_job_whose_run_was_removed_is_found_in_the_queue(box: Box, tmp_path: Path) -> None:
    words = ["cluster=box", *overrides(box.shards, tmp_path), "cluster.sbatch={begin: now+1hour}"]
    assert glci("submit", *words).returncode == 0
    (number,) = box.jobs()
    shutil.rmtree(tmp_path / "run")
    again = glci("submit", *words)
    assert again.returncode == 2
    assert f"{tmp_path}/run has job {number} in the queue already, though its folder says nothing" in again.stderr
    cancelled = glci("cancel", str(tmp_path / "run"))
    assert cancelled.returncode == 0, cancelled.stderr
    assert f"job {number} is cancelled" in cancelled.stdout
    assert box.jobs() == []


def test_without_the_controller_it_is_said_what_is_the_matter(box: Box, tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    # Nobody listens there.
    conf.write_text(re.sub("SlurmctldHost=.*", "SlurmctldHost=localhost\nSlurmctldPort=9", CONF.read_text()))
    with pytest.MonkeyPatch.context() as patch, patience(1):
        patch.setenv("SLURM_CONF", str(conf))
        with pytest.raises(Silence) as told:
            ask(["squeue"])
    assert str(told.value).startswith("the scheduler does not answer (squeue: ")
    assert "asked again for 1 s" in str(told.value)
    assert "\n" not in str(told.value)


def _ran(box: Box, runs: Path, *launcher: str) -> str:
    """What `glci train` said under ``launcher``; it has come to its end."""
    command = [*launcher, sys.executable, "-m", "glci_dist", "train", *overrides(box.shards, runs, steps=_FEW)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    saved = newest_in(runs / "run" / "checkpoints")
    assert saved is not None
    assert saved.step == sum(_FEW)
    (attempt,) = account(runs / "run").attempts
    assert attempt.state == "done"
    return ended.stdout


@pytest.mark.parametrize("where", [("--nodes=1", "--ntasks=2"), ("--nodes=2", "--ntasks=4")])
def test_the_tasks_of_a_step_are_one_world(box: Box, tmp_path: Path, where: tuple[str, ...]) -> None:
    ranks = where[-1].rpartition("=")[2]
    said = _ran(box, tmp_path, "srun", *where, "--export=ALL,PYTHONUNBUFFERED=1")
    assert said.count(f"attempt 1, {ranks} rank(s)") == 1


def test_a_command_in_a_batch_script_of_several_tasks_is_one_process(box: Box, tmp_path: Path) -> None:
    # sbatch --wait, whose script is the command.
    script = tmp_path / "script.sh"
    words = " ".join(f"'{word}'" for word in overrides(box.shards, tmp_path, steps=_FEW))
    script.write_text(
        f"#!/bin/sh\nenv | grep -q SLURM_NTASKS=4 && exec '{sys.executable}' -m glci_dist train {words}\n"
    )
    output = tmp_path / "output"
    command = ["sbatch", "--wait", "--nodes=2", "--ntasks=4", f"--output={output}", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr + (output.read_text() if output.exists() else "")
    assert "attempt 1, 1 rank(s)" in output.read_text()


def test_a_sweep_is_a_job_array_with_a_run_of_each_combination(box: Box, tmp_path: Path) -> None:
    words = ["cluster=box", *overrides(box.shards, tmp_path, steps=(6, 2, 2)), "cluster.nodes=1"]
    done = glci("submit", *words, "phases.joint.alpha=4e-4,1e-3", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert [run.name for run in runs] == ["run-phases.joint.alpha=1e-3", "run-phases.joint.alpha=4e-4"]
    jobs = {json.loads((run / "jobs" / "submitted.jsonl").read_text())["job"] for run in runs}
    assert len({job.split("_")[0] for job in jobs}) == 1
    assert {job.split("_")[1] for job in jobs} == {"0", "1"}
    assert [state(run) for run in runs] == ["done", "done"]
    # With one more value, that one alone is submitted; the others are named.
    again = glci("submit", *words, "phases.joint.alpha=4e-4,1e-3,2e-3")
    assert again.returncode == 0, again.stderr
    assert [f"{run} is complete (step 10): it is not submitted again" in again.stdout for run in runs] == [True, True]
    (new,) = set(tmp_path.glob("run-*")) - set(runs)
    number = json.loads((new / "jobs" / "submitted.jsonl").read_text())["job"]
    assert "_" not in number
    once_more = glci("submit", *words, "phases.joint.alpha=4e-4,1e-3,2e-3")
    assert once_more.returncode == 0, once_more.stderr
    assert f"{new} has job {number} in the queue already" in once_more.stdout
    assert "nothing is submitted" in once_more.stdout


def test_a_run_longer_than_its_time_limit_queues_itself_again(limited: Job, expected_of_two: dict[str, bytes]) -> None:
    job = limited
    completes(job, lost=0)
    attempts = job.account().attempts
    print(f"{len(attempts) - 1} requeues; between stopping and the next step:")
    for one, following in itertools.pairwise(attempts):
        running = next(event for event in job.events("running") if event["attempt"] == following.number)
        print(f"  {running['time'] - one.ended:.1f} s")
    assert len(attempts) >= 3
    assert "Traceback" not in job.output()
    assert len(job.events("stopped")) == len(attempts) - 1
    assert final_files(job.run, sum(STEPS)) == expected_of_two
