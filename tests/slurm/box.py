"""Submitting to the cluster in a box, doing things to it, and reading what became of the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glci_dist.runs.ledger import Account, account
from glci_dist.slurm import scheduler
from tests.journal import read_journal
from tests.small_run import small

CLUSTER = Path(__file__).parents[2] / "slurm" / "cluster" / "cluster.py"
CONF = Path("/var/lib/glci-slurm/slurm.conf")
NODES = ("glci-n1", "glci-n2", "glci-n3", "glci-n4")
STEPS = (30, 4, 6)
EVERY = 5
"""Steps between checkpoints."""
SHELL = {
    # What `salloc -N1 -n1 --mem-per-cpu=100`, a user's profile and a container's start leave in a shell.
    "SLURM_JOB_ID": "7",
    "SLURM_JOBID": "7",
    "SLURM_NTASKS": "1",
    "SLURM_NPROCS": "1",
    "SLURM_NNODES": "1",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_TASKS_PER_NODE": "1",
    "SLURM_JOB_NODELIST": "glci-n9",
    "SLURM_NODEID": "3",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_MEM_PER_NODE": "100",
    "SLURM_CPU_BIND": "rank",
    "SLURM_RESTART_COUNT": "5",
    "SLURM_DISTRIBUTION": "plane=9",
    "SLURM_OVERLAP": "1",
    "SLURM_EXPORT_ENV": "NONE",
    "SLURM_TIMELIMIT": "1",
    "SBATCH_PARTITION": "nowhere",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_ARRAY_INX": "0-3",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_MEM_PER_NODE": "1",
    "SBATCH_WAIT": "1",
    "SBATCH_SIGNAL": "KILL@1",
    "SQUEUE_FORMAT": "%i",
    "SQUEUE_STATES": "FAILED",
    "SQUEUE_USERS": "nobody",
    "SQUEUE_PARTITION": "nowhere",
    "SINFO_FORMAT": "%n",
    "SACCT_FORMAT": "user",
    "SLURM_TIME_FORMAT": "relative",
    "SCANCEL_STATE": "PENDING",
    "SUBMITIT_PREEMPT_SIGNAL": "USR1",
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_DEBUG_JOB_ID": "9",
    "RANK": "3",
    "WORLD_SIZE": "9",
    "MASTER_ADDR": "nowhere",
    "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "9",
    "OMPI_COMM_WORLD_RANK": "3",
    "PMI_RANK": "3",
    "CUDA_VISIBLE_DEVICES": "5",
}
"""The variables of the shell that these tests call `glci` in: none of them may change what it does."""


def overrides(shards: Path, runs: Path, *extra: str, steps: tuple[int, int, int] = STEPS) -> list[str]:
    """The run of these tests: all three phases, a checkpoint every five steps."""
    always = ("monitor.scalars_every=1", f"checkpoints.every={EVERY}", "checkpoints.run_ahead=1", "engine.timeout_s=60")
    return small(shards, runs, steps=steps, extra=(*always, *extra))


class Undisturbed:
    """The run under torchrun on this machine, beside whatever else is done until its end is asked for."""

    def __init__(self, shards: Path, runs: Path, *, workers: int, steps: tuple[int, int, int] = STEPS) -> None:
        self._run, self._output = runs / "run", runs / "output"
        runs.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
        command = [*launcher, "-m", "glci_dist", "train", *overrides(shards, runs, steps=steps)]
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=subprocess.STDOUT
            )

    def folder(self) -> Path:
        """Its folder, when it is at its end."""
        assert self._process.wait(300) == 0, self._output.read_text()
        return self._run

    def close(self) -> None:
        # torchrun ends its workers.
        self._process.terminate()
        self._process.wait(60)


def losses(run: Path) -> dict[tuple[str, int], float]:
    """Each loss at each step of the surviving history, from TensorBoard's files."""
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag.startswith("loss/")]
    return {(tag, point.step): point.value for tag in tags for point in board.Scalars(tag)}


def furthest_loss(run: Path, other: Path) -> float:
    """How far any loss of any step is from the same in another run, relatively; both have the same steps."""
    found, wanted = losses(run), losses(other)
    assert found.keys() == wanted.keys()
    return max(abs(found[point] - wanted[point]) / abs(wanted[point]) for point in wanted)


def wait_until(condition: Callable[[], Any], what: str, *, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never within {seconds:.0f} s: {what}"
        time.sleep(0.1)
    return found


class Job:
    """A submitted run."""

    def __init__(self, number: str, run: Path) -> None:
        self.number, self.run = number, run

    @property
    def state(self) -> str:
        there = scheduler.queued(self.number)
        return there.state if there else ""

    @property
    def restarts(self) -> int:
        there = scheduler.queued(self.number)
        return there.restarts if there else -1

    @property
    def nodes(self) -> list[str]:
        there = scheduler.queued(self.number)
        names = there.nodes if there else ""
        told = subprocess.run(["scontrol", "show", "hostnames", names], capture_output=True, text=True, check=True)
        return told.stdout.split() if names else []

    def output(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((self.run / "jobs").glob("*log.out")))

    def account(self) -> Account:
        return account(self.run)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_journal(self.run) if event["event"] == kind]

    def step(self) -> int:
        """The next step of the newest attempt, as of the last second; -1 before its first."""
        attempts = self.account().attempts
        return attempts[-1].reached if attempts and attempts[-1].seconds_a_step else -1

    def wait_for_step(self, step: int, *, seconds: float = 150) -> None:
        wait_until(lambda: self.step() >= step, f"step {step}\n{self.output()[-3000:]}", seconds=seconds)

    def wait_for_checkpoint(self, step: int, *, seconds: float = 150) -> None:
        """Return a moment after the checkpoint of ``step`` was committed."""
        wait_until(
            lambda: any(event["step"] >= step for event in self.events("checkpoint")),
            f"checkpoint of step {step}\n{self.output()[-3000:]}",
            seconds=seconds,
        )

    def wait_for_attempt(self, number: int, *, seconds: float = 150) -> None:
        """Return when an attempt with this number, or a greater one, has run a step."""
        wait_until(
            lambda: any(event["attempt"] >= number for event in self.events("running")),
            f"attempt {number}\n{self.output()[-3000:]}",
            seconds=seconds,
        )

    def figures(self, start: float, *, detected: float) -> str:
        """What an event cost that came at ``start`` and was noticed at ``detected`` (seconds since 1970)."""
        running = next(event["time"] for event in reversed(self.events("running")))
        lost = sum(attempt.lost_steps for attempt in self.account().attempts)
        return f"noticed after {detected - start:.1f} s, next step after {running - start:.1f} s, {lost} steps lost"

    def crashes(self) -> list[dict[str, Any]]:
        """What the launchers noted of crashed workers, oldest first."""
        paths = (self.run / "jobs").glob("*.crashes.jsonl")
        found = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        return sorted(found, key=lambda crash: float(crash["time"]))

    def wait_for_end(self, *, seconds: float = 240) -> str:
        """The state that the job ends in."""

        def ended() -> str:
            there = scheduler.queued(self.number)
            return "GONE" if there is None else there.state if there.has_ended else ""

        return str(wait_until(ended, f"job {self.number} ended, it is {self.state}", seconds=seconds))


class Box:
    """The cluster."""

    def __init__(self, shards: Path) -> None:
        self.shards = shards
        self._kept: set[str] = set()
        self._cut: set[str] = set(NODES)
        """Nodes that are not known to be connected."""

    def submit(self, runs: Path, *extra: str, steps: tuple[int, int, int] = STEPS) -> Job:
        words = ["cluster=box", *overrides(self.shards, runs, *extra, steps=steps)]
        done = glci("submit", *words)
        assert done.returncode == 0, done.stderr
        (line,) = (runs / "run" / "jobs" / "submitted.jsonl").read_text().splitlines()[-1:]
        return Job(json.loads(line)["job"], runs / "run")

    def act(self, command: str, node: str) -> None:
        """``kill``, ``start``, ``cut`` or ``heal`` a node."""
        if command == "cut":
            self._cut.add(node)
        if command == "heal":
            self._cut.discard(node)
        subprocess.run([sys.executable, CLUSTER, command, node], check=True, capture_output=True)

    def down_since(self, node: str, start: float) -> float:
        """When the scheduler noticed that a node was lost after ``start``, to the second."""
        since = datetime.fromtimestamp(start).isoformat(timespec="seconds")
        asked = ["sacctmgr", "-n", "-P", "show", "event", f"nodes={node}", f"start={since}", "format=timestart"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
        return max(datetime.fromisoformat(time).timestamp() for time in told)

    def ranks(self, node: str) -> list[int]:
        """The pids of the workers on a node."""
        found = []
        for pid, words in self._processes(node):
            with suppress(OSError):
                is_worker = "glci_dist" in words and "train" in words
                if is_worker and b"RANK=" in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(pid)
        return found

    def launchers(self, node: str) -> list[int]:
        """The pids of what becomes a job's launcher on a node, however far it is; one, as a rule."""
        found = self._processes(node)
        return [pid for pid, words in found if "submitit.core._submit" in words and words[1] == "-u"]

    def _processes(self, node: str) -> Iterator[tuple[int, list[str]]]:
        told = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True, check=False).stdout
        for pid in map(int, told.split()):
            with suppress(OSError):
                yield pid, Path(f"/proc/{pid}/cmdline").read_text().split("\0")

    def mend(self) -> None:
        """Every node is connected, up and free of what a test did to it."""
        for node in sorted(self._cut):
            self.act("heal", node)
        for node in NODES:
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False, capture_output=True)
        subprocess.run([sys.executable, CLUSTER, "up"], check=True, capture_output=True)

    @contextmanager
    def kept(self, job: Job) -> Iterator[None]:
        """``clear`` and ``jobs`` leave this one out."""
        self._kept.add(job.number)
        try:
            yield
        finally:
            self._kept.discard(job.number)

    def jobs(self) -> list[str]:
        """The numbers of all jobs that are not kept."""
        told = subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True, check=True).stdout
        return [number for number in told.split() if number not in self._kept]

    def clear(self) -> None:
        """No job of anybody's is left."""

        def is_empty() -> bool:
            if jobs := self.jobs():
                subprocess.run(["scancel", *jobs], check=False, capture_output=True)
            return not jobs

        wait_until(is_empty, "the queue is empty")


def glci(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "glci_dist", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, **SHELL},
    )


def state(run: Path) -> str:
    """What `glci status` says of a run."""
    done = glci("status", str(run), "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["state"])


def completes(job: Job, *, lost: int = EVERY + 1) -> None:
    """It does, and no attempt lost more steps than so many."""
    assert job.wait_for_end() == "COMPLETED", job.output()
    attempts = job.account().attempts
    assert attempts[-1].state == "done"
    assert all(attempt.lost_steps <= lost for attempt in attempts)
