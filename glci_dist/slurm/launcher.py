"""What a job runs on each of its nodes: torch's elastic agent with the node's workers, until the run is done.

submitit starts one of these on every node of the job. They meet at the first node, start the workers by the same
command as torchrun would, and decide what an end of the workers means for the job.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from glci_dist.checkpoints.manifest import folders
from glci_dist.config import ClusterConfig
from glci_dist.errors import Fault, UserError
from glci_dist.slurm import scheduler
from glci_dist.slurm.agent import Agent, Bounds, Crash, Stopped
from glci_dist.slurm.notes import Notes, idle_starts, left_out

_KEEP_ALIVE_S = 5
_DEFERENCE_S = 15.0
_PORTS = 1000
_TRIES, _PAUSE_S = 15, 2.0
"""Of asking the scheduler, whose answer it may be to end this process."""
_NO_BOUND = 1_000_000
"""Restarts that torch may do: how many there are is decided in ``agent.py``."""


@dataclass
class Launch:
    """The task of one node; what submitit pickles. Paths are absolute."""

    overrides: list[str]
    run: Path
    parts: int
    """What the number of ranks has to divide: the global batch in micro-batches."""
    cluster: ClusterConfig

    def __call__(self) -> str:
        """Run the workers to the end of the run; what became of it. Raises where the job has failed."""
        from submitit import JobEnvironment

        environment = JobEnvironment()
        hosts = list(environment.hostnames)
        script = environment.paths.submission_file
        job = Work(self, environment.job_id, hosts, environment.node, script)
        # What an earlier run of this job left would be taken for this one's.
        environment.paths.result_pickle.unlink(missing_ok=True)
        return job.run()


class Work:
    """A ``Launch`` on one of the job's nodes."""

    def __init__(self, launch: Launch, job: str, hosts: list[str], node: int, script: Path) -> None:
        """``script``: what sbatch was given."""
        self._launch, self._job, self._hosts, self._node, self._script = launch, job, hosts, node, script
        self._host = hosts[node]
        """As the scheduler calls it."""
        self._restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self._is_scheduled = launch.cluster.executor == "slurm"
        """Whether there is a scheduler that knows of the job."""
        self._notes = Notes(launch.run, job, self._restart, self._host)

    def run(self) -> str:
        used = usable_nodes(self._launch.parts, self._launch.cluster, len(self._hosts))
        if self._node == 0:
            out = left_out(self._launch.run, self._job)
            without = f", without {', '.join(out)}" if out else ""
            workers = self._launch.cluster.workers
            self._tell(f"nodes {', '.join(self._hosts[:used])}: {used} x {workers} workers{without}")
        if self._node >= used:
            return f"not needed: {used} of {len(self._hosts)} nodes share the global batch evenly"
        self._notes.reserve()
        try:
            return self._work(used)
        finally:
            self._notes.release()

    def _work(self, nodes: int) -> str:
        try:
            agent, result = self._run_agent(nodes)
        except (RendezvousError, DistError) as problem:
            # Of a lost node the scheduler knows soon, and takes the job away. Else it was the network.
            cause = problem.__cause__ or problem
            why = f"the nodes lost one another ({type(cause).__name__}: {_first_line(str(cause))})"
            return why if self._is_taken_away() else self._queue_again(why, asks=True)
        if agent.is_left_out:
            return self._wait_to_be_ended("left out")
        if agent.signal is not None and (result is None or result.is_failed()):
            return self._after_signal(agent.signal, agent)
        if result is None or not result.is_failed():
            return "done"
        reason = agent.ending or "its workers failed"
        self._write_verdict(reason, agent.crashes[-1].step if agent.crashes else -1)
        raise Fault(reason)

    def _run_agent(self, nodes: int) -> tuple[Agent, RunResult | None]:
        launch, cluster = self._launch, self._launch.cluster
        logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
        # c10d warns of every connection from an address that has no name in the DNS.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        # Each start of the workers gets a store of its own: what an earlier one left in it would be believed.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        copied = os.environ.get("PYTHONPATH", "")
        os.environ.update(cluster.environment)
        if "PYTHONPATH" in cluster.environment:
            # The copy of the code that was submitted comes first, whatever else there is.
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [copied, cluster.environment["PYTHONPATH"]]))
        meeting = RendezvousParameters(
            backend="c10d",
            endpoint=f"{self._hosts[0]}:{cluster.reserved_port + _number(self._job) % _PORTS}",
            run_id=f"{self._job}.{self._restart}",
            min_nodes=nodes,
            max_nodes=nodes,
            local_addr=socket.gethostname(),
            is_host=self._node == 0,
            join_timeout=cluster.node_timeout_s,
            timeout=cluster.node_timeout_s,
            read_timeout=cluster.node_timeout_s,
            keep_alive_interval=_KEEP_ALIVE_S,
        )
        spec = WorkerSpec(
            role="",
            local_world_size=cluster.workers,
            entrypoint=sys.executable,
            args=("-u", "-m", "glci_dist", "train", *launch.overrides),
            rdzv_handler=get_rendezvous_handler(meeting),
            max_restarts=_NO_BOUND,
            monitor_interval=0.2,
            local_addr=socket.gethostname(),
        )
        bounds = Bounds(cluster.restarts, cluster.restart_window_s, cluster.same_step, cluster.node_crashes)
        with tempfile.TemporaryDirectory(prefix="glci-agent-") as logs:
            agent = Agent(
                spec,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
                exit_barrier_timeout=30,
                bounds=bounds,
                hosts=self._hosts[:nodes],
                host=self._host,
                on_crash=self._note_crash,
                leave_out=self._leave_this_node_out,
            )
            try:
                return agent, agent.run()
            except Stopped:
                return agent, None

    def _after_signal(self, number: signal.Signals, agent: Agent) -> str:
        """The workers have saved. What comes next is the scheduler's: it is asked for another run, or it ends this."""
        if not self._is_scheduled:
            self._tell(f"stopped by {number.name}; what was saved stays, submit again to go on")
            return "stopped"
        warning = ""
        with suppress(UserError):
            warning = scheduler.warning(self._job, lead_s=self._launch.cluster.signal_lead_s)
        # With SIGTERM it was cancelled, and must not be queued again, or was queued again already; unless it makes
        # room for another.
        if warning != scheduler.PREEMPTED and (number != signal.SIGUSR2 or agent.is_told_to_end):
            return self._wait_to_be_ended(f"stopped by {number.name}")
        return self._queue_again(f"stopped by {number.name}", asks=self._node == 0, warning=warning)

    def _queue_again(self, why: str, *, asks: bool, warning: str = "") -> str:
        """Have the job run again, if that is of use, and wait for its end. ``asks``: it is on this node to ask."""
        if not self._is_scheduled:
            self._write_verdict(why, -1)
            raise Fault(why)
        # A signal may have come to this node alone, and the one whose turn it is waits for this one.
        if not asks and self._is_taken_away(within_s=_DEFERENCE_S):
            return why
        cluster, run = self._launch.cluster, self._launch.run
        step = next((step for step, _ in folders(run / "checkpoints")), 0)
        idle = 0 if warning == scheduler.PREEMPTED else idle_starts(run, self._job, step=step, before=self._restart)
        refusal = ""
        if self._restart >= cluster.requeues:
            refusal = f"it was queued again {self._restart} times already (cluster.requeues)"
        elif idle >= cluster.idle_starts:
            refusal = f"{idle} starts in a row brought no checkpoint after step {step} (cluster.idle_starts)"
            if warning:
                refusal += (
                    f": is cluster.time_min={cluster.time_min} enough for the start, and cluster.signal_lead_s="
                    f"{cluster.signal_lead_s} for a save?"
                )
        if refusal:
            self._write_verdict(f"{why}, but {refusal}", -1)
            raise Fault(f"{why}, but {refusal}")
        self._notes.again(step=step, why=why, warning=warning)
        self._tell(f"{why}; the job is queued again")
        self._persist(self._requeue)
        return self._wait_to_be_ended(why)

    def _wait_to_be_ended(self, why: str) -> str:
        """Return when the scheduler has taken the job away, and need not kill this process to have its node."""
        if not self._is_taken_away():
            raise Fault(f"{why}; what was saved stays, submit again to go on")
        return why

    def _is_taken_away(self, *, within_s: float | None = None) -> bool:
        """Wait for the scheduler to end this run of the job, a while or ``cluster.node_timeout_s``; whether it did."""
        if not self._is_scheduled:
            return False
        patience_s = self._launch.cluster.node_timeout_s if within_s is None else within_s
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            with suppress(UserError):
                if self._has_ended():
                    return True
            time.sleep(1)
        return False

    def _has_ended(self) -> bool:
        """Whether this run of the job is over, for the scheduler. Raises ``UserError`` without its answer."""
        there = scheduler.queued(self._job)
        # Without this node it may run again already.
        return there is None or there.is_taken_away or there.restarts != self._restart

    def _requeue(self) -> None:
        # What this node was cut off from may have been asked by another, and the job run again.
        if not self._has_ended():
            scheduler.requeue(self._job)

    def _leave_this_node_out(self, reason: str) -> bool:
        """Queue the job again without this node; whether that can be."""
        cluster = self._launch.cluster
        if not self._is_scheduled:
            return False
        out = left_out(self._launch.run, self._job)
        nodes = ",".join([*filter(None, [cluster.exclude]), *out, self._host])
        refusal: str | None = f"cluster.exclusions={cluster.exclusions}"
        if len(out) < cluster.exclusions:
            try:
                refusal = scheduler.refusal(self._script, exclude=nodes)
            except UserError as silence:
                refusal = str(silence)
        if refusal is not None:
            self._tell(f"{reason}; it is not left out: {refusal}")
            return False
        self._write_verdict(f"{reason}: the job goes on without {self._host}", -1, left_out=self._host)
        self._persist(self._requeue)
        self._persist(lambda: scheduler.exclude(self._job, nodes))
        return True

    def _persist(self, ask: Callable[[], None]) -> None:
        """Ask the scheduler for something until it does it, or for a while; it may be busy."""
        for _ in range(_TRIES):
            try:
                ask()
                break
            except UserError as problem:
                self._tell(str(problem))
                time.sleep(_PAUSE_S)

    def _note_crash(self, crash: Crash) -> None:
        self._notes.crash(time=crash.time, step=crash.step, cause=crash.cause)

    def _write_verdict(self, reason: str, step: int, *, left_out: str = "") -> None:
        """Leave why the job ends where `glci status` finds it, and say it."""
        samples = samples_of(self._launch.overrides, step)
        record = {
            "job": self._job,
            "restart": self._restart,
            "host": self._host,
            "time": round(time.time(), 3),
            "step": step,
            "samples": samples,
            "reason": reason,
            "left_out": left_out,
        }
        self._notes.verdict(record)
        shown = f"; samples of step {step}: {', '.join(samples)}" if samples else ""
        self._tell(f"fault: {reason}{shown}")

    def _tell(self, line: str) -> None:
        print(f"glci: job {self._job}, restart {self._restart}, {self._host}: {line}", flush=True)


def usable_nodes(parts: int, cluster: ClusterConfig, there: int) -> int:
    """The most nodes, of ``there``, whose ranks share the global batch evenly; raises ``UserError`` if too few do."""
    least = cluster.min_nodes or cluster.nodes
    for nodes in range(min(there, cluster.nodes), least - 1, -1):
        if parts % (nodes * cluster.workers) == 0:
            return nodes
    raise UserError(
        f"{there} node(s) x {cluster.workers} workers, or fewer nodes down to {least}, do not share the global batch "
        "evenly: change global_batch, cluster.workers or cluster.min_nodes"
    )


def samples_of(overrides: list[str], step: int) -> list[str]:
    """The keys of a step's samples, which are a function of the configuration; empty where they cannot be read."""
    from glci_dist import compose
    from glci_dist.data.index import load_index
    from glci_dist.data.order import Order
    from glci_dist.data.store import ShardStore

    if step < 0:
        return []
    try:
        config = compose.load(overrides)
        index = load_index(config.data.shards, config.data.cache)
        order = Order(index.counts, seed=config.seed, global_batch=config.global_batch, config=config.data.order)
        store = ShardStore(index, config.data.cache)
        slots = range(config.global_batch)
        return [f"{index.shards[shard].name}/{store.sample(shard, n)[0]}" for shard, n in order.samples(step, slots)]
    except UserError:
        return []


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _number(job: str) -> int:
    return int("".join(filter(str.isdigit, job)) or 0)
