"""Events drawn at random, one after the other, in one run on the cluster in a box; and whether its end shows them.

    python -m tests.slurm.chaos --events 20 --seed 0

Prints what was done, when the run was going again and what it lost; at the end each attempt, as `glci status` tells it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.slurm.box import CLUSTER, CONF, EVERY, NODES, Box, Job, Undisturbed, glci, wait_until
from tests.slurm.trouble import slow_steps
from tests.small_run import build_faces, final_files

_STEPS_AN_EVENT = 15
_STEP_S = 0.5
"""What each step takes longer, so that no event meets a run that is done."""
_TIME_OVER_S = 100
"""Until the scheduler warns of a time limit that was set so that it finds time to; the run goes on meanwhile."""
_LEAD_S = 30
"""``cluster.signal_lead_s`` of configs/cluster/box.yaml."""


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
    # Each kind comes at least once.
    kinds = list(_EVENTS)
    names = (kinds + draw.choices(kinds, k=max(0, events - len(kinds))))[:events]
    waits = names.count("its time is over") * round(_TIME_OVER_S / _STEP_S)
    steps = (_STEPS_AN_EVENT * events + waits, 10, 20)
    box.mend()
    slow = slow_steps(_STEP_S, folder / "custom")
    job = box.submit(folder / "runs", slow, "cluster.restarts=1000", "cluster.min_nodes=2", steps=steps)
    job.wait_for_step(EVERY)
    expected: dict[int, str] = {}
    for number, name in enumerate(names, 1):
        time.sleep(draw.uniform(0, 2))
        struck, start = job.account().attempts[-1].number, time.time()
        told, undo = _EVENTS[name](box, job, draw)
        expected[struck] = told
        job.wait_for_attempt(struck + 1, seconds=180)
        running = next(event for event in reversed(job.events("running")) if event["attempt"] > struck)
        undo()
        lost = sum(attempt.lost_steps for attempt in job.account().attempts if attempt.number >= struck)
        print(
            f"event {number:2d}: {name:18s} next step after {running['time'] - start:5.1f} s, at step "
            f"{running['step']:4d}; {lost} steps lost",
            flush=True,
        )
        assert lost <= EVERY + 1
        job.wait_for_step(job.step() + 2)
    assert job.wait_for_end(seconds=900) == "COMPLETED", job.output()[-4000:]
    print(glci("status", str(job.run)).stdout)
    status = json.loads(glci("status", str(job.run), "--json").stdout)
    assert status["state"] == "done"
    for attempt in status["attempts"]:
        told = f"{attempt['state']}: {attempt['reason']}"
        assert re.search(expected.get(attempt["number"], ""), told), (attempt["number"], told, expected)
    undisturbed = Undisturbed(box.shards, folder / "undisturbed", workers=4, steps=steps)
    same = final_files(job.run, sum(steps)) == final_files(undisturbed.folder(), sum(steps))
    how = "bitwise" if same else "NOT"
    print(f"{events} events, {len(status['attempts'])} attempts, each told as it was")
    print(f"the end is {how} that of an undisturbed run")
    assert same


def _kill_rank(box: Box, job: Job, draw: random.Random) -> tuple[str, Callable[[], object]]:
    node, pid = draw.choice([(node, pid) for node in job.nodes for pid in box.ranks(node)])
    number = draw.choice((signal.SIGKILL, signal.SIGSEGV))
    os.kill(pid, number)
    return rf"died: .*rank \d on {node}: Signal {number:d} \({number.name}\)", lambda: None


def _kill_node(box: Box, job: Job, draw: random.Random) -> tuple[str, Callable[[], object]]:
    node = draw.choice(job.nodes)
    box.act("kill", node)
    return f"died: {node} was lost", lambda: _bring_back(box, node, "start")


def _cut(box: Box, job: Job, draw: random.Random) -> tuple[str, Callable[[], object]]:
    node = draw.choice(job.nodes)
    box.act("cut", node)
    return f"died: {node} was lost", lambda: _bring_back(box, node, "heal")


def _requeue(_box: Box, job: Job, _draw: random.Random) -> tuple[str, Callable[[], object]]:
    subprocess.run(["scontrol", "requeue", job.number], check=True)
    return r"stopped: stopped by SIGTERM .*its job was put into the queue again", lambda: None


def _signal(_box: Box, job: Job, _draw: random.Random) -> tuple[str, Callable[[], object]]:
    subprocess.run(["scancel", "--signal=USR2", job.number], check=True)
    return r"stopped: stopped by SIGUSR2 .*its job was put into the queue again", lambda: None


def _preempt(_box: Box, _job: Job, _draw: random.Random) -> tuple[str, Callable[[], object]]:
    command = ["sbatch", "-Q", "-p", "high", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3"]
    subprocess.run(command, check=True)
    return (
        r"stopped: stopped by SIGUSR2 .*its job is preempted|stopped by SIGTERM .*its job was preempted",
        lambda: None,
    )


def _time_over(_box: Box, job: Job, _draw: random.Random) -> tuple[str, Callable[[], object]]:
    elapsed = subprocess.run(["squeue", "-h", "-j", job.number, "-o", "%M"], check=True, capture_output=True, text=True)
    minutes, seconds = map(int, elapsed.stdout.strip().split(":")[-2:])
    # The scheduler looks twice a minute: its warning has to find time left.
    _limit_time(job, math.ceil((60 * minutes + seconds + _LEAD_S + 30) / 60))
    return r"stopped: stopped by SIGUSR2 .*its job's time limit comes near", lambda: _limit_time(job, 60)


def _limit_time(job: Job, minutes: int) -> None:
    subprocess.run(["scontrol", "update", f"JobId={job.number}", f"TimeLimit={minutes}"], check=True)


def _bring_back(box: Box, node: str, how: str) -> None:
    box.act(how, node)

    def is_back() -> bool:
        told = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%N %t"], capture_output=True, text=True).stdout
        return dict(line.split() for line in told.splitlines())[node] in ("idle", "mix", "alloc", "comp")

    wait_until(is_back, f"{node} is back", seconds=60)


_EVENTS: dict[str, Callable[[Box, Job, random.Random], tuple[str, Callable[[], object]]]] = {
    "a rank dies": _kill_rank,
    "a node is killed": _kill_node,
    "warned (USR2)": _signal,
    "preempted": _preempt,
    "requeued": _requeue,
    "its time is over": _time_over,
    "a node is cut off": _cut,
}
"""What is done: says how `glci status` is to tell of the attempt that it struck, as a pattern, and how to undo it."""

if __name__ == "__main__":
    assert len(NODES) == 4
    main()
