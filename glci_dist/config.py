"""The typed schema of ``configs/``: each field's docstring is its documentation.

``glci_dist.compose`` fills it from Hydra's files and overrides and checks the rules between values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

RESERVED_PORTS = 1000
"""From ``cluster.reserved_port`` on."""


@dataclass
class OrderConfig:
    """How the corpus is shuffled (docs/architecture.md, "Order at scale")."""

    lanes: int = 4
    """Parts of an epoch that are read side by side; divides ``global_batch``."""
    block_shards: int = 4
    """Consecutive shards (of the permuted shard list) whose samples are permuted together."""


@dataclass
class CacheConfig:
    """The node's cache of remote shards."""

    dir: str = "~/.cache/glci-dist/shards"
    """Folder on the node's own disk, shared by its processes and by later runs. One that cannot be written must hold
    all the shards."""
    max_gib: float = 50.0
    """Least recently used shards are removed beyond this many GiB."""
    retries: int = 5
    """Times that a failed transfer, of an index or of a shard, is tried again before the command ends; an answer that
    is final (no such file, no right, an untrusted certificate, a redirection to nowhere) ends it at once."""
    backoff_s: float = 0.5
    """Wait before the first retry, seconds; doubled for each further one."""
    timeout_s: float = 60.0
    """A transfer that brings no byte for this long is retried, seconds."""


@dataclass
class DataConfig:
    """The stream: where photos come from, and what is done to each."""

    shards: str = MISSING
    """Folder or url (http, https, s3) that holds ``index.json`` and the shards."""
    val: str | None = None
    """Shards whose faces fill the picture grids; null: the training shards'."""
    size: int = 64
    """Side of the square crop, px; a multiple of 4."""
    short_edge: list[int] = field(default_factory=lambda: [64, 71])
    """The photo's short edge is scaled to a length drawn from this range, px."""
    flip: bool = True
    """Mirror half of the photos."""
    order: OrderConfig = field(default_factory=OrderConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    workers: int = 1
    """Loader processes of each rank; 0 decodes in the training process."""
    prefetch: int = 4
    """Batches that each loader process prepares ahead."""
    tolerance: float = 0.01
    """Share of samples that may fail to decode before the run ends."""
    mean_colour: list[float] | None = None
    """Fills the hole: red, green, blue in [0, 1]; null: measured on photos of the corpus."""


@dataclass
class HolesConfig:
    """The region to complete, and the local discriminator's patch."""

    kind: str = "box"
    """``box``, ``boxes`` (several), ``freeform`` (strokes) or ``centre``."""
    min_side: int = 19
    """Least side of a rectangle, px."""
    max_side: int = 38
    """Greatest side of a rectangle, px; of the bounding box of all rectangles or strokes."""
    max_count: int = 3
    """Greatest number of rectangles (``boxes``) or strokes (``freeform``) in one hole."""
    stroke_radius: list[float] = field(default_factory=lambda: [1.5, 4.0])
    """Range of a stroke's half width, px (``freeform``)."""
    patch: int = 40
    """Side of the local discriminator's square patch, px."""
    custom: dict[str, Any] = field(default_factory=dict)
    """A kind of your own in place of ``kind``: ``_target_``, a dotted path to a class, and its arguments
    (docs/extending.md)."""


@dataclass
class CompletionConfig:
    """The completion network."""

    kind: str = "glcic"
    """``glcic`` (2017) or ``context_encoder`` (2016)."""
    width: float = 1.0
    """Factor on every hidden channel count."""
    enlarge: str = "deconvolution"
    """``deconvolution`` (the paper's) or ``resize`` (nearest, then a convolution); ``glcic`` only."""
    custom: dict[str, Any] = field(default_factory=dict)
    """A network of your own in place of all that: ``_target_``, a dotted path to a class, and its arguments."""


@dataclass
class DiscriminatorConfig:
    """The context discriminators."""

    kind: str = "global_local"
    """``global_local``, or one branch alone: ``global``, ``local``."""
    width: float = 1.0
    """Factor on every channel count."""
    normalization: str = "batch"
    """``batch`` (batch norm, the paper's), ``spectral`` (of every layer's weights) or ``none``."""
    batch_norm: str = "apart"
    """Whether batch norm sees real and completed photos ``apart`` or ``together``, as one batch."""
    slope: float = 0.0
    """Of the activations below zero: 0 is ReLU (the paper's), 0.2 a usual leaky one."""
    custom: dict[str, Any] = field(default_factory=dict)
    """Discriminators of your own in place of all that: ``_target_``, a dotted path to a class, and its arguments."""


@dataclass
class ModelConfig:
    """The networks."""

    completion: CompletionConfig = field(default_factory=CompletionConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


@dataclass
class LossConfig:
    """What the two sides minimise; every loss is a mean over slots of a per-photo value."""

    reconstruction: str = "l2"
    """``l2`` (squared error, the paper's) or ``l1``."""
    region: str = "hole"
    """Where the reconstruction is judged: ``hole`` or ``photo``; a mean over that region, photo by photo."""
    adversarial: str = "non_saturating"
    """The contest: ``non_saturating`` or ``saturating`` (cross-entropy; the latter is the paper's minimax),
    ``hinge``, ``least_squares`` or ``wasserstein`` (with ``gradient_penalty``)."""
    gradient_penalty: float = 0.0
    """Weight of WGAN-GP's penalty: the discriminators' gradient between real and completed has norm 1."""
    r1: float = 0.0
    """Weight (gamma) of the R1 penalty: the discriminators' gradient on real photos is small."""
    penalty_every: int = 1
    """The penalties are reckoned at every n-th update of the discriminators, n times as heavy."""
    label_smoothing: float = 0.0
    """A real photo's target is 1 less this, one-sided (cross-entropy only)."""
    instance_noise: float = 0.0
    """Standard deviation of the noise on all that the discriminators judge, pixels in [0, 1]; falls to 0 over a
    phase. The penalties are taken without it."""
    feature_matching: float = 0.0
    """Weight of the difference between the discriminators' activations of a photo and of its completion; where
    ``alpha`` is above 0."""
    perceptual: float = 0.0
    """Weight of the perceptual distance on EfficientNet-Lite0; then that figure of `glci evaluate` is no judge."""
    total_variation: float = 0.0
    """Weight of the mean difference between neighbouring pixels in the hole and across its edge."""
    terms: dict[str, Any] = field(default_factory=dict)
    """Further terms of the completion network's loss by name: each a ``_target_``, its ``weight`` and arguments."""
    penalties: dict[str, Any] = field(default_factory=dict)
    """Further penalties of the discriminators by name, under ``penalty_every``: each as in ``terms``."""


@dataclass
class PhaseConfig:
    """One phase of the schedule; phases follow each other in the order in which they stand."""

    steps: int = MISSING
    """Length of the phase; 0 leaves it out."""
    completion_every: int = 0
    """The completion network is updated at every n-th step of the phase; 0: never."""
    discriminator_every: int = 0
    """The discriminators are updated at every n-th step of the phase; 0: never."""
    completion_lr: float = 0.0
    """The completion network's learning rate."""
    discriminator_lr: float = 0.0
    """The discriminators' learning rate."""
    reconstruction: float = 1.0
    """Weight of the reconstruction loss."""
    alpha: float = 0.0
    """Weight of the adversarial loss (the paper's alpha)."""
    balance: float = 0.0
    """In place of ``alpha`` (which still switches the adversarial loss on): that weight with which the adversarial
    gradient at the output is so many times the reconstruction's, by the phase's first steps; 0: ``alpha``."""
    balance_steps: int = 20
    """Steps whose gradients ``balance`` is measured on: the phase's first that update the completion network; in the
    first of them it is only measured."""
    lr_schedule: str = "constant"
    """``constant``, ``linear`` or ``cosine``: from the phase's learning rates down to ``lr_final`` of them."""
    lr_warmup: int = 0
    """Steps at the start of the phase in which the learning rates rise from 0."""
    lr_final: float = 0.0
    """Share of the learning rates that is left at the phase's end."""


@dataclass
class OptimizerConfig:
    """One network's optimiser; its learning rate is the phase's."""

    kind: str = "adam"
    """``adam`` or ``adadelta`` (the paper's)."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Adam's."""
    rho: float = 0.9
    """Adadelta's."""
    eps: float = 1e-8
    """Added to a denominator: Adam's root of the second moment, Adadelta's mean squares."""
    weight_decay: float = 0.0
    """Share of the weights that is added to their gradient (L2)."""


@dataclass
class OptimizersConfig:
    """Both networks' optimisers."""

    completion: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class EngineConfig:
    """How updates are computed (DeepSpeed)."""

    device: str = "auto"
    """``auto`` (a GPU where there is one), ``cpu`` or ``cuda``."""
    precision: str = "bf16"
    """``bf16``, ``fp16`` (GPUs) or ``fp32``; weights, batch norm and optimisers are fp32 always."""
    zero_stage: int = 0
    """Optimiser states whole on each rank (0) or one part on each (1)."""
    accumulation: int = 1
    """Micro-batches that a rank's slots are cut into; batch norm sees one micro-batch of all ranks at a time."""
    gradient_clip: float = 0.0
    """Greatest norm of a network's gradient; 0: not clipped."""
    ema: float = 0.999
    """Decay of the completion network's moving average; 0: none."""
    not_finite: str = "skip"
    """Answer to a gradient that is not finite: ``skip`` the update, ``stop`` the run, or ``rollback``."""
    not_finite_limit: int = 20
    """Skipped steps in a row after which the run stops all the same."""
    spike: str = "skip"
    """Answer to a gradient whose norm jumps: ``skip``, ``stop`` or ``rollback``; such an update is never applied."""
    spike_factor: float = 0.0
    """A norm jumps when it exceeds this many times the median of the last ones; 0: no such watch."""
    spike_window: int = 64
    """Applied updates of a network that the median is taken over; none is judged before there are as many."""
    pass_over: int = 1
    """After a ``rollback`` to the last checkpoint: steps that are passed over, the offending one the last of them."""
    rollbacks: int = 3
    """Rollbacks in a row to the same checkpoint, after which the run stops all the same."""
    deterministic: bool = False
    """Bitwise repeatable on GPUs too (CPUs always are), at some cost."""
    threads: int = 0
    """CPU threads of each rank; 0: the machine's cores divided by its ranks."""
    timeout_s: float = 600.0
    """A collective that takes longer ends the run, seconds, unless a rank is waited for whose disk is slow."""


@dataclass
class CheckpointsConfig:
    """When the state is saved, and which of the saved ones are kept (docs/checkpoints.md)."""

    every: int = 500
    """Steps between checkpoints, beside the one at each phase's end; 0: only those."""
    run_ahead: int = -1
    """Steps that training runs on while a checkpoint is written; 0: it waits; -1: until the next one is due."""
    keep: int = 3
    """The newest checkpoints that are kept, at least 2; each phase's end is kept for good."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are kept for good; 0: none."""
    stop_within_s: float = 300.0
    """A run that a signal stops ends this long after it, saved or not, seconds; 0: however long saving takes."""
    accept: list[str] = field(default_factory=list)
    """Keys whose change since the run began is accepted on resuming, such as ``[global_batch,data.shards]``."""


@dataclass
class MonitorConfig:
    """What a run shows of itself, and when (in steps)."""

    scalars_every: int = 10
    """Steps between scalars in TensorBoard; each is a mean over them."""
    pictures_every: int = 250
    """Steps between picture grids; 0: no pictures."""
    pictures: int = 8
    """Faces in a picture grid."""
    evaluate_every: int = 0
    """Steps between evaluations on ``data.val``, beside the one at each phase's end; 0: none at all."""
    evaluate_photos: int = 256
    """Photos of each, the first ones, with the holes of `glci evaluate`."""
    progress: bool = True
    """Show a progress line."""
    straggler_share: float = 0.25
    """A host that is slower than the others by this share is named; 0: none is."""
    straggler_s: float = 60.0
    """How long it has to be, seconds."""


@dataclass
class DoctorConfig:
    """How a contest that goes wrong is answered (docs/recipes.md): each state by ``warn``, ``balance`` (weaken the
    stronger side; discriminators that overshoot begin anew), ``rollback`` (to the last checkpoint, and then the same)
    or ``stop``."""

    window: int = 20
    """Steps that a diagnosis is taken over, and that discriminators which begin anew have to themselves; 0: none is."""
    every: int = 10
    """Steps between diagnoses."""
    diverging: str = "warn"
    """The reconstruction error grows, or something is not finite."""
    collapse: str = "warn"
    """Completions of different photos become alike."""
    checkerboard: str = "warn"
    """A regular pattern of the enlargements stands in the completions."""
    no_contest: str = "warn"
    """The adversary is not felt."""
    dominates: str = "warn"
    """The discriminators tell nearly every photo."""
    asleep: str = "warn"
    """The discriminators tell nothing, or learn so fast that they overshoot (seen in phase 2 already)."""


@dataclass
class ClusterConfig:
    """Where `glci submit` puts the run, and what it does when the cluster takes something away (docs/slurm.md)."""

    executor: str = "slurm"
    """``slurm``; ``local`` (processes of this machine) or ``debug`` (this process), to try a submission."""
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
    nodes: int = 1
    """Nodes of the job."""
    min_nodes: int = 0
    """Nodes that it goes on with where there are no more, the global batch unchanged; 0: all of ``nodes``."""
    workers: int = 1
    """Ranks on each node: its GPUs, as a rule."""
    gpus: int = 0
    """GPUs of each node."""
    cpus: int = 0
    """Processors of each node; 0: what the cluster gives."""
    memory_gb: float = 0.0
    """Memory of each node; 0: what the cluster gives."""
    time_min: int = 60
    """Time limit of each attempt, minutes; the job is queued again when it is over."""
    signal_lead_s: int = 120
    """The scheduler's warning before the time limit, seconds: a step and a save must fit in."""
    requeues: int = 1000
    """Times that the job may be queued again."""
    idle_starts: int = 3
    """Starts in a row that ended at the time limit, or for want of one another, without a newer checkpoint, after
    which a job ends."""
    restarts: int = 5
    """Crashes within ``restart_window_s`` after which a job ends; fewer restart its workers where they are."""
    restart_window_s: float = 3600.0
    """See ``restarts``, seconds."""
    same_step: int = 3
    """Crashes in a row in the same step after which a job ends: it would crash there for ever."""
    node_crashes: int = 3
    """Crashes in a row that all began on one node, and not all in one step, after which the job is queued again
    without that node; 0: never."""
    exclusions: int = 1
    """Nodes that it may leave out so."""
    node_timeout_s: int = 600
    """How long nodes wait for one that is lost, and for the scheduler to take the job away: longer than it needs to
    notice (its ``SlurmdTimeout``, 300 as a rule), seconds. Then they have the job queued again themselves."""
    reserved_port: int = 29400
    """First of 1,000 ports, one of which the nodes meet at (chosen by the job's number)."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job's command, such as ``module load cuda``."""
    environment: dict[str, str | None] = field(default_factory=dict)
    """Variables of the workers, such as ``NCCL_SOCKET_IFNAME``; null: they are to be without it. Credentials are
    refused: export them where you submit."""
    sbatch: dict[str, str | None] = field(default_factory=dict)
    """Further options of sbatch, such as ``{mail-type: END, exclusive: true}``; null or false: without the option."""


@dataclass
class Config:
    """A run's whole configuration."""

    name: str = MISSING
    """The run's name; its folder is ``runs``/``name``."""
    runs: str = "runs"
    """Folder of the runs' folders."""
    seed: int = 0
    """Of all random numbers: weights, order, crops, flips, holes, patches."""
    global_batch: int = 32
    """Slots in a step, over all ranks."""
    data: DataConfig = field(default_factory=DataConfig)
    holes: HolesConfig = field(default_factory=HolesConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optimizers: OptimizersConfig = field(default_factory=OptimizersConfig)
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    """The schedule, by name; the recipe has ``completion``, ``discriminator`` and ``joint``."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    metrics: dict[str, Any] = field(default_factory=dict)
    """Further figures of the completions at each step, by name: each a ``_target_`` and its arguments."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """What else follows the training step by step, by name: each a ``_target_`` and its arguments."""
    loggers: dict[str, Any] = field(default_factory=dict)
    """Where scalars, pictures and words go beside TensorBoard, by name: each a ``_target_`` and its arguments."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
