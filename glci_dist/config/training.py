"""The training: losses, phases, optimisers, engine, checkpoints, monitoring, diagnosis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from glci_dist.config.fields import Rule, above, at_least, below_one, component, one_of, ruled

_ANSWERS = ("skip", "stop", "rollback")
_TREATMENTS = ("warn", "balance", "rollback", "stop")


@dataclass
class LossConfig:
    """The losses of the completion network and the discriminators; each is a mean over photos of a per-photo value."""

    reconstruction: str = one_of("l2", "l1")
    """Reconstruction loss: ``l2`` (squared error, the paper's) or ``l1``."""
    region: str = one_of("hole", "rim", "photo")
    """Region of the reconstruction loss: ``hole``, ``rim`` (the hole and ``rim`` px around it) or ``photo``; each
    photo's loss is the mean over its region."""
    rim: int = at_least(1, default=2)
    """Width of the rim in ``region=rim``, px, whatever a phase's ``size``."""
    adversarial: str = one_of("non_saturating", "saturating", "hinge", "least_squares", "wasserstein")
    """GAN loss: ``non_saturating`` or ``saturating`` (cross-entropy; the latter is the paper's minimax), ``hinge``,
    ``least_squares`` or ``wasserstein`` (needs ``gradient_penalty``)."""
    gradient_penalty: float = at_least(0, default=0.0)
    """Weight of the WGAN-GP penalty: (gradient norm - 1)^2 of the discriminators, between real and completed photos."""
    r1: float = at_least(0, default=0.0)
    """Weight (gamma) of the R1 penalty: half the squared gradient norm of the discriminators on real photos."""
    penalty_every: int = at_least(1, default=1)
    """Lazy regularisation: penalties are computed at every n-th update of the discriminators and scaled by n."""
    label_smoothing: float = below_one(default=0.0)
    """One-sided label smoothing: the target of real photos is 1 minus this (cross-entropy only)."""
    instance_noise: float = at_least(0, default=0.0)
    """Standard deviation of Gaussian noise on all discriminator inputs (pixels in [0, 1]) except in the penalties;
    decays to 0 over a phase."""
    feature_matching: float = at_least(0, default=0.0)
    """Weight of the feature matching loss: the difference between the discriminators' activations on a photo and on
    its completion. Used where ``alpha`` is above 0."""
    perceptual: float = at_least(0, default=0.0)
    """Weight of the perceptual loss on EfficientNet-Lite0. `glci evaluate` measures with the same network, so its
    perceptual and Frechet distances are biased for a run that was trained with it."""
    total_variation: float = at_least(0, default=0.0)
    """Weight of the total variation loss: mean absolute difference of neighbouring pixels in the hole and across its
    edge."""
    terms: dict[str, Any] = component(by_name=True)
    """Your own terms of the completion network's loss, by name: each a ``_target_``, ``weight`` and arguments."""
    penalties: dict[str, Any] = component(by_name=True)
    """Your own penalties of the discriminators, by name, as in ``terms``; ``penalty_every`` applies to them too."""


@dataclass
class PhaseConfig:
    """One phase of the schedule; phases run in the order in which they are declared."""

    steps: int = at_least(0, default=MISSING)
    """Length of the phase, steps; 0 skips the phase."""
    size: int = at_least(0, default=0)
    """Photo size, px; 0: ``data.size``. Crops, holes and patches are scaled with it. Only for phases that use no
    discriminators, which are made for photos of ``data.size``."""
    batch: int = at_least(0, default=0)
    """Photos per step, over all ranks; 0: ``global_batch``."""
    completion_every: int = at_least(0, default=0)
    """Update the completion network at every n-th step of the phase; 0: never."""
    discriminator_every: int = at_least(0, default=0)
    """Update the discriminators at every n-th step of the phase; 0: never."""
    completion_lr: float = at_least(0, default=0.0)
    """Learning rate of the completion network."""
    discriminator_lr: float = at_least(0, default=0.0)
    """Learning rate of the discriminators."""
    reconstruction: float = at_least(0, default=1.0)
    """Weight of the reconstruction loss."""
    alpha: float = at_least(0, default=0.0)
    """Weight of the adversarial loss (the paper's alpha)."""
    balance: float = at_least(0, default=0.0)
    """Ratio of the adversarial gradient's norm to the reconstruction gradient's at the completion network's output. If
    above 0, the adversarial weight is computed from it (over ``balance_steps``) instead of taken from ``alpha``, which
    must still be above 0. 0: use ``alpha``."""
    balance_steps: int = at_least(0, default=20)
    """Steps over which ``balance`` measures both gradients: the phase's first that update the completion network. In
    the first of them the adversarial weight is still 0."""
    lr_schedule: str = one_of("constant", "linear", "cosine")
    """``constant``, or ``linear`` or ``cosine`` decay to ``lr_final`` times the phase's learning rates."""
    lr_warmup: int = at_least(0, default=0)
    """Linear warm-up of the learning rates from 0 at the start of the phase, steps."""
    lr_final: float = at_least(0, default=0.0)
    """Factor of the learning rates at the end of a decay."""


@dataclass
class OptimizerConfig:
    """The optimiser of one network; the learning rate is set by the phase."""

    kind: str = one_of("adam", "muon", "adadelta")
    """``adam``, ``muon`` (updates of weight matrices with equal singular values; Adam for biases, scales and layers of
    few channels) or ``adadelta`` (the paper's)."""
    betas: list[float] = ruled(
        Rule(
            lambda betas: len(betas) == 2 and all(0 <= value < 1 for value in betas),
            "must be two numbers, each at least 0 and less than 1",
        ),
        default_factory=lambda: [0.9, 0.999],
    )
    """Adam's decay rates of the first and second moment; the first is Muon's momentum too."""
    rho: float = below_one(default=0.9)
    """Adadelta's decay rate."""
    eps: float = above(0, default=1e-8)
    """Added to denominators for numerical stability: in Adam to the root of the second moment, in Adadelta to the mean
    squares. Muon: the root mean square of a matrix's averaged gradient below which its update becomes smaller."""
    weight_decay: float = at_least(0, default=0.0)
    """L2 penalty: this times the weights is added to their gradient. Muon takes this times the learning rate off its
    matrices, beside the update."""


@dataclass
class OptimizersConfig:
    """The optimisers of both networks."""

    completion: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class EngineConfig:
    """How updates are computed (torch, DeepSpeed)."""

    device: str = one_of("auto", "cpu", "cuda")
    """``auto`` (a GPU if available), ``cpu`` or ``cuda``."""
    precision: str = one_of("bf16", "fp16", "fp32")
    """Autocast dtype: ``bf16``, ``fp16`` (GPUs only) or ``fp32``. Weights, batch norm and optimisers stay fp32."""
    zero_stage: int = ruled(
        Rule(
            lambda stage: stage in (0, 1),
            "is refused: stages 0 and 1 are proven equal to plain torch for two engines, 2 and 3 are not "
            "(docs/architecture.md); choose 0 or 1",
        ),
        default=0,
    )
    """ZeRO stage: optimiser states replicated on every rank (0) or partitioned over the ranks (1)."""
    accumulation: int = at_least(1, default=1)
    """Gradient accumulation: micro-batches per step. Batch norm sees one micro-batch of all ranks at a time, or
    with ``model.batch_norm.group`` the groups in it."""
    gradient_clip: float = at_least(0, default=0.0)
    """Maximum norm of each network's gradient; 0: no clipping."""
    ema: float = below_one(default=0.999)
    """Decay of the exponential moving average (EMA) of the completion network's weights; 0: no EMA."""
    not_finite: str = one_of(*_ANSWERS)
    """Reaction to a gradient that is not finite: ``skip`` the update, ``stop`` the run, or ``rollback`` to the last
    checkpoint."""
    not_finite_limit: int = at_least(1, default=20)
    """The run stops after this many consecutive skipped steps, whatever the reaction."""
    spike: str = one_of(*_ANSWERS)
    """Reaction to a gradient spike: ``skip``, ``stop`` or ``rollback``; such an update is never applied."""
    spike_factor: float = at_least(
        0,
        Rule(
            lambda factor: factor == 0 or factor > 1,
            "would refuse ordinary gradients: it must be greater than 1, or 0 for no such watch",
        ),
        default=0.0,
    )
    """A gradient spikes if its norm exceeds this many times the median of the last norms; 0: no spike detection."""
    spike_window: int = at_least(2, default=64)
    """Applied updates of a network over which the median is taken; no spikes are detected before as many."""
    pass_over: int = at_least(1, default=1)
    """Steps that are skipped after a ``rollback``: the offending step, and this many minus 1 before it."""
    rollbacks: int = at_least(0, default=3)
    """The run stops after this many consecutive rollbacks to the same checkpoint."""
    deterministic: bool = False
    """Use deterministic GPU kernels, which are slower; on CPUs they always are."""
    threads: int = at_least(0, default=0)
    """CPU threads per rank; 0: the machine's cores divided by its ranks."""
    timeout_s: float = above(0, default=600.0)
    """Timeout of collectives, seconds: the run ends if one takes longer, unless a rank is still reading or writing a
    checkpoint."""


@dataclass
class CheckpointsConfig:
    """When checkpoints are saved, and which are kept (docs/checkpoints.md)."""

    every: int = at_least(0, default=500)
    """Steps between checkpoints; there is always one at the end of each phase. 0: only those."""
    run_ahead: int = at_least(-1, default=-1)
    """Maximum number of steps that training runs while a checkpoint is written; 0: it waits for the write; -1: until
    the next checkpoint is due."""
    keep: int = at_least(2, default=3)
    """Number of newest checkpoints to keep, at least 2. Those at phase ends are kept permanently."""
    keep_every: int = at_least(0, default=0)
    """Checkpoints at multiples of this step are kept permanently; 0: none."""
    stop_within_s: float = at_least(0, default=300.0)
    """Time limit between a signal to stop and the end of the run, saved or not, seconds; 0: no limit."""
    accept: list[str] = field(default_factory=list)
    """Keys that may differ on resume from the run's stored configuration, such as ``[global_batch,data.shards]``."""


@dataclass
class MonitorConfig:
    """Logging, picture grids, evaluations during training, progress, stragglers."""

    scalars_every: int = at_least(1, default=10)
    """Steps between scalars in TensorBoard; each is the mean over these steps."""
    pictures_every: int = at_least(0, default=250)
    """Steps between picture grids; there is also one at the end of each phase. 0: no pictures."""
    pictures: int = at_least(1, default=8)
    """Number of faces in a picture grid."""
    evaluate_every: int = at_least(0, default=0)
    """Steps between evaluations on ``data.val``; there is also one at the end of each phase. 0: no evaluations."""
    evaluate_photos: int = at_least(2, default=256)
    """Number of photos per evaluation: the first of ``data.val``, with the holes of `glci evaluate`."""
    progress: bool = True
    """Show a progress line."""
    straggler_share: float = at_least(0, default=0.25)
    """Report a host that is slower than the others by this share for at least ``straggler_s``; 0: disabled."""
    straggler_s: float = at_least(0, default=60.0)
    """See ``straggler_share``, seconds."""


@dataclass
class DoctorConfig:
    """Reactions to failure modes of adversarial training (docs/doctor.md), for each state: ``warn``, ``balance``
    (weaken the stronger network; discriminators that overshoot are reset), ``rollback`` (load the last checkpoint, then
    balance) or ``stop``."""

    window: int = at_least(0, default=20)
    """Steps per diagnosis, and steps for which discriminators are trained alone after a reset; 0: no diagnoses."""
    every: int = at_least(1, default=10)
    """Steps between diagnoses."""
    diverging: str = one_of(*_TREATMENTS)
    """The reconstruction error grows, or a scalar is not finite."""
    collapse: str = one_of(*_TREATMENTS)
    """Mode collapse: completions of different photos become alike."""
    checkerboard: str = one_of(*_TREATMENTS)
    """Checkerboard artefacts of the upsampling layers in the completions."""
    no_contest: str = one_of(*_TREATMENTS)
    """The adversarial gradient is negligible at the completion network's output."""
    dominates: str = one_of(*_TREATMENTS)
    """The discriminators are too strong: they classify nearly every photo correctly."""
    asleep: str = one_of(*_TREATMENTS)
    """The discriminators are too weak: they do not tell real from completed photos, or overshoot because they learn too
    fast (detected in phase 2 already)."""
