"""Events drawn at random, one after the other, in one run on the cluster in a box; and whether its end shows them.

    python -m tests.slurm.chaos --events 20 --seed 0

Prints what was done, when the run was going again and what it lost; at the end each attempt, as `glci status` tells it.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.slurm.box import CLUSTER, CONF, EVERY, NODES, Box, Job, final_files, glci, kill, overrides, wait_until
from tests.slurm.trouble import slow_steps
from tests.small_run import build_faces

_STEPS_AN_EVENT = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="which events are drawn")
    arguments = parser.parse_args()
    subprocess.run([sys.executable, CLUSTER, "up"], check=True)
    os.environ["SLURM_CONF"] = str(CONF)
    with tempfile.TemporaryDirectory(prefix="chaos-slurm-") as folder:
        run(Path(folder), arguments.events, random.Random(arguments.seed))


def run(folder: Path, events: int, draw: random.Random) -> None:
    (folder / "faces").mkdir()
    box = Box(build_faces(folder / "faces", photos=24, samples=6))
    steps = (_STEPS_AN_EVENT * events + 100, 10, 20)
    box.mend()
    # Slower, so that an event does not meet a run that is done.
    job = box.submit(
        folder / "runs", slow_steps(0.2, folder / "custom"), "cluster.restarts=1000", "cluster.min_nodes=2", steps=steps
    )
    job.wait_for_step(EVERY)
    kinds = list(_EVENTS)
    for number in range(1, events + 1):
        # Each kind comes about as often as any other.
        name = kinds[(number - 1) % len(kinds)] if number <= len(kinds) else draw.choice(kinds)
        time.sleep(draw.uniform(0, 2))
        before, start = len(job.account().attempts), time.time()
        undo = _EVENTS[name](box, job, draw)
        job.wait_for_attempt(before + 1, seconds=180)
        running = next(event for event in reversed(job.events("running")) if event["attempt"] > before)
        undo()
        lost = max(attempt.lost_steps for attempt in job.account().attempts)
        print(
            f"event {number:2d}: {name:22s} going again after {running['time'] - start:5.1f} s at step "
            f"{running['step']:4d}; lost at most {lost} steps so far",
            flush=True,
        )
        assert lost <= EVERY + 1
        step = job.step()
        job.wait_for_step(step + 2)
    assert job.wait_for_end(seconds=900) == "COMPLETED", job.output()[-4000:]
    print(glci("status", str(job.run)).stdout)
    attempts = job.account().attempts
    assert attempts[-1].state == "done"
    assert len(attempts) >= events
    undisturbed = folder / "undisturbed"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command = [*launcher, "-m", "glci_dist", "train", *overrides(box.shards, undisturbed, steps=steps)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    same = final_files(job.run, sum(steps)) == final_files(undisturbed / "run", sum(steps))
    how = "bitwise" if same else "NOT"
    print(f"{events} events, {len(attempts)} attempts; the end is {how} that of an undisturbed run")
    assert same


def _kill_rank(box: Box, job: Job, draw: random.Random) -> Callable[[], object]:
    kill(draw.choice([pid for node in job.nodes for pid in box.ranks(node)]))
    return lambda: None


def _kill_node(box: Box, job: Job, draw: random.Random) -> Callable[[], object]:
    node = draw.choice(job.nodes)
    box.act("kill", node)
    return lambda: _bring_back(box, node, "start")


def _cut(box: Box, job: Job, draw: random.Random) -> Callable[[], object]:
    node = draw.choice(job.nodes)
    box.act("cut", node)
    return lambda: _bring_back(box, node, "heal")


def _requeue(_box: Box, job: Job, _draw: random.Random) -> Callable[[], object]:
    subprocess.run(["scontrol", "requeue", job.number], check=True)
    return lambda: None


def _signal(_box: Box, job: Job, _draw: random.Random) -> Callable[[], object]:
    subprocess.run(["scancel", "--signal=USR2", job.number], check=True)
    return lambda: None


def _preempt(_box: Box, _job: Job, _draw: random.Random) -> Callable[[], object]:
    command = ["sbatch", "-Q", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"]
    subprocess.run(command, check=True)
    return lambda: None


def _bring_back(box: Box, node: str, how: str) -> None:
    box.act(how, node)

    def is_back() -> bool:
        told = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N %t"], capture_output=True, text=True).stdout
        return dict(line.split() for line in told.splitlines())[node] in ("idle", "mix", "alloc", "comp")

    wait_until(is_back, f"{node} is back", seconds=60)


_EVENTS = {
    "a rank is killed": _kill_rank,
    "a node is killed": _kill_node,
    "USR2": _signal,
    "preempted": _preempt,
    "requeued": _requeue,
    "a node is cut off": _cut,
}

if __name__ == "__main__":
    assert len(NODES) == 4
    main()
