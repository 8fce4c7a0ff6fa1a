"""What is minimised and how: losses, phases, optimisers, engine, checkpoints, and who watches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from glci_dist.config.fields import Rule, above, at_least, below_one, component, one_of, ruled

_ANSWERS = ("skip", "stop", "rollback")
_TREATMENTS = ("warn", "balance", "rollback", "stop")


@dataclass
class LossConfig:
    """What the two sides minimise; every loss is a mean over slots of a per-photo value."""

    reconstruction: str = one_of("l2", "l1")
    """``l2`` (squared error, the paper's) or ``l1``."""
    region: str = one_of("hole", "photo")
    """Where the reconstruction is judged: ``hole`` or ``photo``; a mean over that region, photo by photo."""
    adversarial: str = one_of("non_saturating", "saturating", "hinge", "least_squares", "wasserstein")
    """The contest: ``non_saturating`` or ``saturating`` (cross-entropy; the latter is the paper's minimax),
    ``hinge``, ``least_squares`` or ``wasserstein`` (with ``gradient_penalty``)."""
    gradient_penalty: float = at_least(0, default=0.0)
    """Weight of WGAN-GP's penalty: the discriminators' gradient between real and completed has norm 1."""
    r1: float = at_least(0, default=0.0)
    """Weight (gamma) of the R1 penalty: the discriminators' gradient on real photos is small."""
    penalty_every: int = at_least(1, default=1)
    """The penalties are reckoned at every n-th update of the discriminators, n times as heavy."""
    label_smoothing: float = below_one(default=0.0)
    """A real photo's target is 1 less this, one-sided (cross-entropy only)."""
    instance_noise: float = at_least(0, default=0.0)
    """Standard deviation of the noise on all that the discriminators judge, pixels in [0, 1]; falls to 0 over a
    phase. The penalties are taken without it."""
    feature_matching: float = at_least(0, default=0.0)
    """Weight of the difference between the discriminators' activations of a photo and of its completion; where
    ``alpha`` is above 0."""
    perceptual: float = at_least(0, default=0.0)
    """Weight of the perceptual distance on EfficientNet-Lite0; then that figure of `glci evaluate` is no judge."""
    total_variation: float = at_least(0, default=0.0)
    """Weight of the mean difference between neighbouring pixels in the hole and across its edge."""
    terms: dict[str, Any] = component(by_name=True)
    """Further terms of the completion network's loss by name: each a ``_target_``, its ``weight`` and arguments."""
    penalties: dict[str, Any] = component(by_name=True)
    """Further penalties of the discriminators by name, under ``penalty_every``: each as in ``terms``."""


@dataclass
class PhaseConfig:
    """One phase of the schedule; phases follow each other in the order in which they stand."""

    steps: int = at_least(0, default=MISSING)
    """Length of the phase; 0 leaves it out."""
    completion_every: int = at_least(0, default=0)
    """The completion network is updated at every n-th step of the phase; 0: never."""
    discriminator_every: int = at_least(0, default=0)
    """The discriminators are updated at every n-th step of the phase; 0: never."""
    completion_lr: float = at_least(0, default=0.0)
    """The completion network's learning rate."""
    discriminator_lr: float = at_least(0, default=0.0)
    """The discriminators' learning rate."""
    reconstruction: float = at_least(0, default=1.0)
    """Weight of the reconstruction loss."""
    alpha: float = at_least(0, default=0.0)
    """Weight of the adversarial loss (the paper's alpha)."""
    balance: float = at_least(0, default=0.0)
    """In place of ``alpha`` (which still switches the adversarial loss on): that weight with which the adversarial
    gradient at the output is so many times the reconstruction's, by the phase's first steps; 0: ``alpha``."""
    balance_steps: int = at_least(0, default=20)
    """Steps whose gradients ``balance`` is measured on: the phase's first that update the completion network; in the
    first of them it is only measured."""
    lr_schedule: str = one_of("constant", "linear", "cosine")
    """``constant``, ``linear`` or ``cosine``: from the phase's learning rates down to ``lr_final`` of them."""
    lr_warmup: int = at_least(0, default=0)
    """Steps at the start of the phase in which the learning rates rise from 0."""
    lr_final: float = at_least(0, default=0.0)
    """Share of the learning rates that is left at the phase's end."""


@dataclass
class OptimizerConfig:
    """One network's optimiser; its learning rate is the phase's."""

    kind: str = one_of("adam", "adadelta")
    """``adam`` or ``adadelta`` (the paper's)."""
    betas: list[float] = ruled(
        Rule(
            lambda betas: len(betas) == 2 and all(0 <= value < 1 for value in betas),
            "must be two numbers, each at least 0 and less than 1",
        ),
        default_factory=lambda: [0.9, 0.999],
    )
    """Adam's."""
    rho: float = below_one(default=0.9)
    """Adadelta's."""
    eps: float = above(0, default=1e-8)
    """Added to a denominator: Adam's root of the second moment, Adadelta's mean squares."""
    weight_decay: float = at_least(0, default=0.0)
    """Share of the weights that is added to their gradient (L2)."""


@dataclass
class OptimizersConfig:
    """Both networks' optimisers."""

    completion: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class EngineConfig:
    """How updates are computed (DeepSpeed)."""

    device: str = one_of("auto", "cpu", "cuda")
    """``auto`` (a GPU where there is one), ``cpu`` or ``cuda``."""
    precision: str = one_of("bf16", "fp16", "fp32")
    """``bf16``, ``fp16`` (GPUs) or ``fp32``; weights, batch norm and optimisers are fp32 always."""
    zero_stage: int = ruled(
        Rule(
            lambda stage: stage in (0, 1),
            "is refused: stages 0 and 1 are proven equal to plain torch for two engines, 2 and 3 are not "
            "(docs/architecture.md); choose 0 or 1",
        ),
        default=0,
    )
    """Optimiser states whole on each rank (0) or one part on each (1)."""
    accumulation: int = at_least(1, default=1)
    """Micro-batches that a rank's slots are cut into; batch norm sees one micro-batch of all ranks at a time."""
    gradient_clip: float = at_least(0, default=0.0)
    """Greatest norm of a network's gradient; 0: not clipped."""
    ema: float = below_one(default=0.999)
    """Decay of the completion network's moving average; 0: none."""
    not_finite: str = one_of(*_ANSWERS)
    """Answer to a gradient that is not finite: ``skip`` the update, ``stop`` the run, or ``rollback``."""
    not_finite_limit: int = at_least(1, default=20)
    """Skipped steps in a row after which the run stops all the same."""
    spike: str = one_of(*_ANSWERS)
    """Answer to a gradient whose norm jumps: ``skip``, ``stop`` or ``rollback``; such an update is never applied."""
    spike_factor: float = at_least(
        0,
        Rule(
            lambda factor: factor == 0 or factor > 1,
            "would refuse ordinary gradients: it must be greater than 1, or 0 for no such watch",
        ),
        default=0.0,
    )
    """A norm jumps when it exceeds this many times the median of the last ones; 0: no such watch."""
    spike_window: int = at_least(2, default=64)
    """Applied updates of a network that the median is taken over; none is judged before there are as many."""
    pass_over: int = at_least(1, default=1)
    """After a ``rollback`` to the last checkpoint: steps that are passed over, the offending one the last of them."""
    rollbacks: int = at_least(0, default=3)
    """Rollbacks in a row to the same checkpoint, after which the run stops all the same."""
    deterministic: bool = False
    """Bitwise repeatable on GPUs too (CPUs always are), at some cost."""
    threads: int = at_least(0, default=0)
    """CPU threads of each rank; 0: the machine's cores divided by its ranks."""
    timeout_s: float = above(0, default=600.0)
    """A collective that takes longer ends the run, seconds, unless a rank is waited for whose disk is slow."""


@dataclass
class CheckpointsConfig:
    """When the state is saved, and which of the saved ones are kept (docs/checkpoints.md)."""

    every: int = at_least(0, default=500)
    """Steps between checkpoints, beside the one at each phase's end; 0: only those."""
    run_ahead: int = at_least(-1, default=-1)
    """Steps that training runs on while a checkpoint is written; 0: it waits; -1: until the next one is due."""
    keep: int = at_least(2, default=3)
    """The newest checkpoints that are kept, at least 2; each phase's end is kept for good."""
    keep_every: int = at_least(0, default=0)
    """Checkpoints at multiples of this step are kept for good; 0: none."""
    stop_within_s: float = at_least(0, default=300.0)
    """A run that a signal stops ends this long after it, saved or not, seconds; 0: however long saving takes."""
    accept: list[str] = field(default_factory=list)
    """Keys whose change since the run began is accepted on resuming, such as ``[global_batch,data.shards]``."""


@dataclass
class MonitorConfig:
    """What a run shows of itself, and when (in steps)."""

    scalars_every: int = at_least(1, default=10)
    """Steps between scalars in TensorBoard; each is a mean over them."""
    pictures_every: int = at_least(0, default=250)
    """Steps between picture grids; 0: no pictures."""
    pictures: int = at_least(1, default=8)
    """Faces in a picture grid."""
    evaluate_every: int = at_least(0, default=0)
    """Steps between evaluations on ``data.val``, beside the one at each phase's end; 0: none at all."""
    evaluate_photos: int = at_least(2, default=256)
    """Photos of each, the first ones, with the holes of `glci evaluate`."""
    progress: bool = True
    """Show a progress line."""
    straggler_share: float = at_least(0, default=0.25)
    """A host that is slower than the others by this share is named; 0: none is."""
    straggler_s: float = at_least(0, default=60.0)
    """How long it has to be, seconds."""


@dataclass
class DoctorConfig:
    """How a contest that goes wrong is answered (docs/recipes.md): each state by ``warn``, ``balance`` (weaken the
    stronger side; discriminators that overshoot begin anew), ``rollback`` (to the last checkpoint, and then the same)
    or ``stop``."""

    window: int = at_least(0, default=20)
    """Steps that a diagnosis is taken over, and that discriminators which begin anew have to themselves; 0: none is."""
    every: int = at_least(1, default=10)
    """Steps between diagnoses."""
    diverging: str = one_of(*_TREATMENTS)
    """The reconstruction error grows, or something is not finite."""
    collapse: str = one_of(*_TREATMENTS)
    """Completions of different photos become alike."""
    checkerboard: str = one_of(*_TREATMENTS)
    """A regular pattern of the enlargements stands in the completions."""
    no_contest: str = one_of(*_TREATMENTS)
    """The adversary is not felt."""
    dominates: str = one_of(*_TREATMENTS)
    """The discriminators tell nearly every photo."""
    asleep: str = one_of(*_TREATMENTS)
    """The discriminators tell nothing, or learn so fast that they overshoot (seen in phase 2 already)."""
