"""What a job runs on each of its nodes: torch's elastic agent with the node's workers, until the run is done.

``launch`` starts one of these on every node of the job. They meet at the first node, start the workers by the same
command as torchrun would, and decide what an end of the workers means for the job.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Collection
from contextlib import suppress

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousError

from glci_dist.config import ClusterConfig
from glci_dist.errors import Fault, UserError
from glci_dist.slurm.agent import Agent, StoppedBeforeStart
from glci_dist.slurm.backends.base import Allocation
from glci_dist.slurm.backends.scheduling import PREEMPTED
from glci_dist.slurm.launch import Launch
from glci_dist.slurm.notes import left_out
from glci_dist.slurm.rendezvous import meet
from glci_dist.slurm.requeue import JobStart

_NO_BOUND = 1_000_000
"""Restarts that torch may do: how many there are is decided in ``agent.py``."""


class NodeLauncher:
    """A ``Launch`` on one of the job's nodes."""

    def __init__(self, launch: Launch, there: Allocation) -> None:
        self._launch, self._script = launch, there.script
        self._job, self._hosts, self._node = there.job, list(there.hosts), there.node
        self._host = there.hosts[there.node]
        self._start = JobStart(launch.run, there.job, there.restart, self._host, launch.cluster)

    def run(self) -> str:
        used = usable_nodes(self._launch.worlds, self._launch.cluster, len(self._hosts))
        if self._node == 0:
            out = left_out(self._launch.run, self._job)
            without = f", without {', '.join(out)}" if out else ""
            workers = self._launch.cluster.workers
            self._start.say(f"nodes {', '.join(self._hosts[:used])}: {used} x {workers} workers{without}")
        if self._node >= used:
            return f"not needed: {used} of {len(self._hosts)} nodes share the global batch evenly"
        self._start.notes.reserve()
        try:
            return self._work(used)
        finally:
            self._start.notes.release()
            if self._node == 0:
                self._start.notes.part()

    def _work(self, nodes: int) -> str:
        try:
            agent, result = self._run_agent(nodes)
        except (RendezvousError, DistError) as problem:
            # Of a lost node the scheduler knows soon, and takes the job away. Else it was the network.
            cause = problem.__cause__ or problem
            said = (str(cause).strip().splitlines() or [""])[0].rstrip()
            why = f"the nodes lost one another ({type(cause).__name__}: {said})"
            return why if self._start.is_taken_away() else self._start.queue_again(why, asks=True)
        if agent.is_left_out:
            return self._start.wait_to_be_ended("left out")
        if agent.signal is not None and (result is None or result.is_failed()):
            return self._after_signal(agent.signal, agent)
        if result is None or not result.is_failed():
            return "done"
        reason, step = agent.ending or "its workers failed", agent.crashes[-1].step if agent.crashes else -1
        self._start.write_verdict(reason, step, samples=samples_of(self._launch.overrides, step))
        raise Fault(reason)

    def _run_agent(self, nodes: int) -> tuple[Agent, RunResult | None]:
        launch, cluster = self._launch, self._launch.cluster
        logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
        _set_environment(cluster)
        meeting = meet(self._start, host=self._hosts[0], is_host=self._node == 0, nodes=nodes)
        spec = WorkerSpec(
            role="",
            local_world_size=cluster.workers,
            entrypoint=sys.executable,
            args=("-u", "-m", "glci_dist", "train", *launch.overrides),
            rdzv_handler=meeting,
            max_restarts=_NO_BOUND,
            monitor_interval=0.2,
            local_addr=socket.gethostname(),
        )
        with tempfile.TemporaryDirectory(prefix="glci-agent-") as logs:
            agent = Agent(
                spec,
                logs_specs=DefaultLogsSpecs(log_dir=logs),
                exit_barrier_timeout=30,
                start=self._start,
                hosts=self._hosts[:nodes],
                leave_out=self._leave_this_node_out,
            )
            try:
                return agent, agent.run()
            except StoppedBeforeStart:
                return agent, None

    def _after_signal(self, number: signal.Signals, agent: Agent) -> str:
        """The workers have saved. What comes next is the scheduler's: it is asked for another run, or it ends this."""
        scheduler = self._start.scheduler
        if scheduler is None:
            self._start.say(f"stopped by {number.name}; what was saved stays, submit again to go on")
            return "stopped"
        warning = ""
        with suppress(UserError):
            warning = scheduler.warning(self._job, lead_s=self._launch.cluster.signal_lead_s)
        # With SIGTERM it was cancelled, and must not be queued again, or was queued again already; unless it makes
        # room for another.
        if warning != PREEMPTED and (number != signal.SIGUSR2 or agent.is_told_to_end):
            return self._start.wait_to_be_ended(f"stopped by {number.name}")
        return self._start.queue_again(f"stopped by {number.name}", asks=self._node == 0, warning=warning)

    def _leave_this_node_out(self, reason: str) -> bool:
        """Queue the job again without this node; whether that can be."""
        cluster, scheduler = self._launch.cluster, self._start.scheduler
        if scheduler is None:
            return False
        out = left_out(self._launch.run, self._job)
        nodes = ",".join([*filter(None, [cluster.exclude]), *out, self._host])
        refusal: str | None = f"cluster.exclusions={cluster.exclusions}"
        try:
            if len(out) < cluster.exclusions:
                refusal = scheduler.refusal(self._script, exclude=nodes)
        except UserError as silence:
            refusal = str(silence)
        if refusal is not None:
            self._start.say(f"{reason}; it is not left out: {refusal}")
            return False
        self._start.write_verdict(f"{reason}: the job goes on without {self._host}", left_out=self._host)
        self._start.persist(self._start.requeue)
        self._start.persist(lambda: scheduler.exclude(self._job, nodes))
        return True


def _set_environment(cluster: ClusterConfig) -> None:
    """Give this process the variables of its workers, which inherit them."""
    # c10d warns of every connection from an address that has no name in the DNS.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Each start of the workers gets a store of its own: what an earlier one left in it would be believed.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    copied = os.environ.get("PYTHONPATH", "")
    for name, value in cluster.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "PYTHONPATH" in cluster.environment:
        # The copy of the code that was submitted comes first, whatever else there is.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [copied, cluster.environment["PYTHONPATH"]]))


def usable_nodes(worlds: Collection[int], cluster: ClusterConfig, there: int) -> int:
    """The most nodes, of ``there``, whose number of ranks is one of ``worlds``; raises ``UserError`` if too few do."""
    least = cluster.min_nodes or cluster.nodes
    for nodes in range(min(there, cluster.nodes), least - 1, -1):
        if nodes * cluster.workers in worlds:
            return nodes
    raise UserError(
        f"{there} node(s) x {cluster.workers} workers, or fewer nodes down to {least}, do not share the global batch "
        "evenly, or hold no whole groups of batch norm or equal parts of one: change global_batch, "
        "model.batch_norm.group, cluster.workers or cluster.min_nodes"
    )


def samples_of(overrides: list[str], step: int) -> list[str]:
    """The keys of a step's samples, which are a function of the configuration; empty where they cannot be read."""
    from glci_dist import compose
    from glci_dist.data.index import load_index
    from glci_dist.data.stages import order_at
    from glci_dist.data.store import ShardStore

    if step < 0:
        return []
    try:
        config = compose.load(overrides)
        index = load_index(config.data.shards, config.data.cache)
        order, stage = order_at(index.counts, config, step)
        store = ShardStore(index, config.data.cache)
        slots = range(stage.batch)
        return [f"{index.shards[shard].name}/{store.sample(shard, n)[0]}" for shard, n in order.samples(step, slots)]
    except UserError:
        return []
