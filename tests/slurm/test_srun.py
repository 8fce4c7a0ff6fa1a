"""srun starts the ranks itself: its tasks are one world, on one node and on several; a batch script is one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glci_dist.runs.ledger import account
from tests.slurm.box import Box, overrides
from tests.small_run import newest_in

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]
STEPS = (4, 1, 1)


def _ran(box: Box, runs: Path, *launcher: str) -> str:
    """What `glci train` said under ``launcher``; it has come to its end."""
    command = [*launcher, sys.executable, "-m", "glci_dist", "train", *overrides(box.shards, runs, steps=STEPS)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    saved = newest_in(runs / "run" / "checkpoints")
    assert saved is not None
    assert saved.step == sum(STEPS)
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
    words = " ".join(f"'{word}'" for word in overrides(box.shards, tmp_path, steps=STEPS))
    script.write_text(
        f"#!/bin/sh\nenv | grep -q SLURM_NTASKS=4 && exec '{sys.executable}' -m glci_dist train {words}\n"
    )
    output = tmp_path / "output"
    command = ["sbatch", "--wait", "--nodes=2", "--ntasks=4", f"--output={output}", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 0, ended.stderr + (output.read_text() if output.exists() else "")
    assert "attempt 1, 1 rank(s)" in output.read_text()
