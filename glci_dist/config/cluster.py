"""Where a run is put, and what it does when something is taken away from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from glci_dist.config.fields import Rule, above, at_least, free_mapping, one_of_or_path

RESERVED_PORTS = 1000
"""From ``cluster.reserved_port`` on."""

_ONE_WORD = Rule(lambda value: isinstance(value, str | None), "has the wrong type: each value is one word, or null")


@dataclass
class ClusterConfig:
    """Where `glci submit` puts the run, and what it does when the cluster takes something away (docs/slurm.md)."""

    executor: str = one_of_or_path("slurm", "local", "debug", see="docs/slurm.md")
    """``slurm``; ``local`` (processes of this machine) or ``debug`` (this process), to try a submission; or the dotted
    path of a class of your own, such as ``my_launchers.Flux`` (docs/slurm.md)."""
    partition: str = ""
    """Partition of the job, or several with commas; empty: the cluster's default."""
    account: str = ""
    """Whom its time is charged to; empty: the user's default."""
    qos: str = ""
    """Quality of service; empty: the default."""
    constraint: str = ""
    """Features that its nodes must have."""
    exclude: str = ""
    """Nodes that it must not have."""
    nodes: int = at_least(1, default=1)
    """Nodes of the job."""
    min_nodes: int = at_least(0, default=0)
    """Nodes that it goes on with where there are no more, the global batch unchanged; 0: all of ``nodes``."""
    workers: int = at_least(1, default=1)
    """Ranks on each node: its GPUs, as a rule."""
    gpus: int = at_least(0, default=0)
    """GPUs of each node."""
    cpus: int = at_least(0, default=0)
    """Processors of each node; 0: what the cluster gives."""
    memory_gb: float = at_least(0, default=0.0)
    """Memory of each node; 0: what the cluster gives."""
    time_min: int = at_least(1, default=60)
    """Time limit of each attempt, minutes; the job is queued again when it is over."""
    signal_lead_s: int = at_least(0, default=120)
    """The scheduler's warning before the time limit, seconds: a step and a save must fit in."""
    requeues: int = at_least(0, default=1000)
    """Times that the job may be queued again."""
    idle_starts: int = at_least(1, default=3)
    """Starts in a row that ended at the time limit, or for want of one another, without a newer checkpoint, after
    which a job ends."""
    restarts: int = at_least(0, default=5)
    """Crashes within ``restart_window_s`` after which a job ends; fewer restart its workers where they are."""
    restart_window_s: float = above(0, default=3600.0)
    """See ``restarts``, seconds."""
    same_step: int = at_least(1, default=3)
    """Crashes in a row in the same step after which a job ends: it would crash there for ever."""
    node_crashes: int = at_least(0, default=3)
    """Crashes in a row that all began on one node, and not all in one step, after which the job is queued again
    without that node; 0: never."""
    exclusions: int = at_least(0, default=1)
    """Nodes that it may leave out so."""
    node_timeout_s: int = at_least(1, default=600)
    """How long nodes wait for one that is lost, and for the scheduler to take the job away: longer than it needs to
    notice (its ``SlurmdTimeout``, 300 as a rule), seconds. Then they have the job queued again themselves."""
    reserved_port: int = at_least(1024, default=29400)
    """First of 1,000 ports, one of which the nodes meet at (chosen by the job's number)."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job's command, such as ``module load cuda``."""
    environment: dict[str, str | None] = free_mapping(_ONE_WORD)
    """Variables of the workers, such as ``NCCL_SOCKET_IFNAME``; null: they are to be without it. Credentials are
    refused: export them where you submit."""
    sbatch: dict[str, str | None] = free_mapping(_ONE_WORD)
    """Further options of sbatch, such as ``{mail-type: END, exclusive: true}``; null or false: without the option."""
