"""Loader workers under the signals of a cluster, and at the end of their training process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

# A training process: it has handlers of its own for the cluster's signals, takes a batch for each line that
# it reads, and says which signals reached it. "end N" sends SIGTERM to its own worker N, as DataLoader does.
TRAINING = """
import json, multiprocessing, signal, sys

from glci_dist.config import DataConfig, HolesConfig
from glci_dist.data.index import load_index
from glci_dist.data.loader import make_loader

if __name__ == "__main__":
    seen = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: seen.append(number))
    data = DataConfig(shards=sys.argv[1], size=16, short_edge=[16, 16], workers=2, prefetch=2)
    index = load_index(data.shards)
    holes = HolesConfig(min_side=4, max_side=8, patch=8)
    batches = iter(make_loader(index, data, holes, seed=0, global_batch=8, rank=0, world_size=1, steps=range(1000)))
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "end":
            worker = next(child for child in multiprocessing.active_children() if child.pid == int(rest[0]))
            worker.terminate()
            worker.join(60)
            print(json.dumps({"exit": worker.exitcode}), flush=True)
            continue
        step = next(batches).step
        workers = sorted(child.pid for child in multiprocessing.active_children())
        print(json.dumps({"step": step, "seen": sorted(set(seen)), "workers": workers}), flush=True)
"""


class Training:
    """The script above, in a process group of its own as under SLURM."""

    def __init__(self, shards: Path, folder: Path) -> None:
        script = folder / "training.py"
        script.write_text(TRAINING)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(shards)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def family(self) -> list[psutil.Process]:
        """The fork server, the resource tracker and the workers."""
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def training(small_shards: Path, tmp_path: Path) -> Iterator[Training]:
    started = Training(small_shards, tmp_path)
    yield started
    for process in [*started.family(), started.process] if started.process.poll() is None else []:
        process.kill()
    started.process.wait()


def test_workers_outlive_the_signals_that_a_cluster_sends_to_all_processes(training: Training) -> None:
    workers = training.ask("next")["workers"]
    family = {process.pid for process in training.family()}
    assert len(workers) == 2
    assert set(workers) < family
    sent = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM]
    for number in sent:
        os.killpg(training.process.pid, number)
    time.sleep(0.5)
    answers = [training.ask("next") for _ in range(20)]
    assert [answer["step"] for answer in answers] == list(range(1, 21))
    assert answers[-1]["workers"] == workers
    assert answers[-1]["seen"] == sorted(sent)
    assert {process.pid for process in training.family()} == family


def test_signals_while_the_workers_start_reach_the_training_process_alone(training: Training) -> None:
    assert training.process.stdin is not None
    training.process.stdin.write("next\n")
    training.process.stdin.flush()
    deadline = time.monotonic() + 60
    while not (family := training.family()) and time.monotonic() < deadline:
        time.sleep(0.002)
    assert family
    # From its first child's first moment on, over the import of torch and the start of both workers.
    while len(training.family()) < 4 and time.monotonic() < deadline:
        os.killpg(training.process.pid, signal.SIGUSR2)
        time.sleep(0.05)
    assert training.process.stdout is not None
    answer = json.loads(training.process.stdout.readline())
    assert answer["step"] == 0
    assert answer["seen"] == [signal.SIGUSR2]
    assert training.ask("next")["step"] == 1


def test_workers_end_when_their_training_process_is_killed(training: Training) -> None:
    training.ask("next")
    family = training.family()
    assert len(family) >= 3
    training.process.kill()
    training.process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_the_training_process_itself_can_end_a_worker(training: Training) -> None:
    worker = training.ask("next")["workers"][0]
    assert training.ask(f"end {worker}")["exit"] == 0
