"""The job of a run on a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from glci_dist.config.fields import Rule, above, at_least, free_mapping, one_of_or_path

RESERVED_PORTS = 1000
"""Number of ports from ``cluster.reserved_port`` on."""

_ONE_WORD = Rule(lambda value: isinstance(value, str | None), "has the wrong type: each value is one word, or null")


@dataclass
class ClusterConfig:
    """The job of `glci submit`: its resources, and when it restarts, is requeued or ends (docs/slurm.md)."""

    executor: str = one_of_or_path("slurm", "local", "debug", see="docs/slurm.md")
    """``slurm``; ``local`` (processes of this machine) or ``debug`` (this process), to try a submission; or the dotted
    path of a class of your own, such as ``my_launchers.Flux`` (docs/slurm.md)."""
    partition: str = ""
    """Partition, or several separated by commas; empty: the cluster's default."""
    account: str = ""
    """Account that the job's time is charged to; empty: the user's default."""
    qos: str = ""
    """Quality of service; empty: the default."""
    constraint: str = ""
    """Features that the nodes must have."""
    exclude: str = ""
    """Nodes that must not be used."""
    nodes: int = at_least(1, default=1)
    """Number of nodes."""
    min_nodes: int = at_least(0, default=0)
    """Least number of nodes to continue with if fewer are left, with the same global batch; 0: ``nodes``."""
    workers: int = at_least(1, default=1)
    """Ranks per node; usually one per GPU."""
    gpus: int = at_least(0, default=0)
    """GPUs per node."""
    cpus: int = at_least(0, default=0)
    """CPUs per node; 0: the cluster's default."""
    memory_gb: float = at_least(0, default=0.0)
    """Memory per node, GB; 0: the cluster's default."""
    time_min: int = at_least(1, default=60)
    """Time limit of each attempt, minutes; the job is requeued when it is reached."""
    signal_lead_s: int = at_least(0, default=120)
    """Time between the scheduler's warning signal and the time limit, seconds; a step and a save must fit into it."""
    requeues: int = at_least(0, default=1000)
    """Maximum number of requeues."""
    idle_starts: int = at_least(1, default=3)
    """The job ends after this many consecutive starts that ended at the time limit, or because the nodes lost contact,
    without a newer checkpoint."""
    restarts: int = at_least(0, default=5)
    """Crashes within ``restart_window_s`` for which the workers are restarted in place; the job ends after more."""
    restart_window_s: float = above(0, default=3600.0)
    """Window in which ``restarts`` are counted, seconds."""
    same_step: int = at_least(1, default=3)
    """The job ends after this many consecutive crashes in the same step, as it would crash there forever."""
    node_crashes: int = at_least(0, default=3)
    """The job is requeued without a node after this many consecutive crashes that all began on that node, and not all
    in one step; 0: never."""
    exclusions: int = at_least(0, default=1)
    """Maximum number of nodes excluded by ``node_crashes``."""
    node_timeout_s: int = at_least(1, default=600)
    """How long the nodes wait for a lost node, and then for the scheduler to end the job, before they requeue it
    themselves, seconds. Must be longer than the scheduler takes to notice (``SlurmdTimeout``, usually 300)."""
    reserved_port: int = at_least(1024, default=29400)
    """First of 1,000 ports for the rendezvous; the job's number determines which one is used."""
    setup: list[str] = field(default_factory=list)
    """Shell lines that run before the job's command, such as ``module load cuda``."""
    environment: dict[str, str | None] = free_mapping(_ONE_WORD)
    """Environment variables of the workers, such as ``NCCL_SOCKET_IFNAME``; null: unset. Credentials are refused:
    export them where you submit."""
    sbatch: dict[str, str | None] = free_mapping(_ONE_WORD)
    """Further options of sbatch, such as ``{mail-type: END, exclusive: true}``; null or false leaves one out."""
