"""Checks a configuration: each value against its field's rule, and values against each other.

The error (``UserError``) is one line with the key, the value and what to do.
"""

from __future__ import annotations

import math
from operator import attrgetter
from pathlib import Path
from typing import Any

from glci_dist.config import Config
from glci_dist.config.fields import rules_of, walk
from glci_dist.errors import UserError


def check(config: Config) -> None:
    """Raise ``UserError`` for the first value that breaks a rule.

    Rules that need the corpus or the world size are checked where these are known.
    """
    if Path(config.name).name != config.name or config.name in ("", ".", ".."):
        raise UserError(f"name={config.name!r} is no name of a folder: give a plain one (runs=... says where it lies)")
    for key, folder in (("runs", config.runs), ("data.shards", config.data.shards)):
        if not folder:
            raise UserError(f"{key} is empty: give a folder")
    _check_values(config)
    _check_data(config)
    _check_contest(config)
    _check_optimizers(config)
    _check_phases(config)


def unknown_choice(config: Config, prefix: str) -> str | None:
    """The first ``key=value`` under ``prefix`` whose value is not one of the key's choices, or None."""
    for key, each in walk(Config):
        value = attrgetter(key)(config)
        if key.startswith(prefix) and any(rule.choices and not rule.holds(value) for rule in rules_of(each)):
            return f"{key}={value}"
    return None


def batches(config: Config) -> dict[str, int]:
    """Photos per step by their keys: ``global_batch``, and of phases that have a number of their own."""
    used = {name: phase.batch for name, phase in config.phases.items() if phase.steps}
    shared = {"global_batch": config.global_batch} if 0 in used.values() or not used else {}
    return shared | {f"phases.{name}.batch": batch for name, batch in used.items() if batch}


def world_sizes(config: Config) -> list[int]:
    """The numbers of ranks that share every batch evenly, and that batch norm's groups fit."""
    batch, group = math.gcd(*batches(config).values()), config.model.batch_norm.group
    return [
        size
        for size in range(1, batch + 1)
        if batch % (size * config.engine.accumulation) == 0
        and all(_fits(group, each, size, config.engine.accumulation) for each in batches(config).values())
    ]


def _fits(group: int, batch: int, world_size: int, accumulation: int) -> bool:
    """Whether a rank's share of a micro-batch is whole groups of batch norm, or an equal part of one group."""
    share = batch // (world_size * accumulation)
    return not group or share % group == 0 or (accumulation == 1 and group % share == 0)


def check_world(config: Config, world_size: int, device: str) -> None:
    """Raise ``UserError`` if this world size and device cannot run the configuration."""
    accumulation, group = config.engine.accumulation, config.model.batch_norm.group
    parts, every = world_size * accumulation, batches(config).values()
    for key, batch in batches(config).items():
        if batch % parts:
            raise UserError(
                f"{key}={batch} is not a multiple of {parts} ({world_size} ranks x "
                f"engine.accumulation={accumulation}): change {key} or the number of ranks"
            )
        if batch // accumulation < 2:
            raise UserError(f"{key}={batch} leaves batch norm one photo at a time: use at least 2 a micro-batch")
        if not _fits(group, batch, world_size, accumulation):
            others = [
                str(other)
                for other in range(min(every), 1, -1)
                if all(each % other == 0 and _fits(other, each, world_size, accumulation) for each in every)
            ]
            raise UserError(
                f"model.batch_norm.group={group}, but each of {world_size} ranks passes {batch // parts} photos at a "
                f"time ({key}={batch}, engine.accumulation={accumulation}), neither whole groups nor an equal part of "
                f"one: use {' or '.join([*others[:3], '0'])} (0 is the whole batch); a run that goes on also needs "
                "'checkpoints.accept=[model.batch_norm.group]'"
            )
    if config.engine.precision == "fp16" and device == "cpu":
        raise UserError("engine.precision=fp16 needs a GPU: on a CPU choose bf16 or fp32")
    if config.engine.precision == "fp16" and config.engine.zero_stage:
        raise UserError(
            "engine.precision=fp16 with engine.zero_stage=1 is refused: DeepSpeed never lowers its loss scale there; "
            "choose engine.zero_stage=0, or bf16"
        )


def _check_values(group: Any, prefix: str = "") -> None:
    """Check each value of a schema dataclass by itself."""
    declared = [(f"{prefix}{key}", attrgetter(key)(group), each) for key, each in walk(type(group))]
    for key, value, _ in declared:
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value} is no finite number: give one")
    for key, value, each in declared:
        for rule in rules_of(each):
            if not rule.holds(value):
                raise UserError(f"{key}={value} {rule.otherwise}")


def _check_data(config: Config) -> None:
    data, short = config.data, config.data.short_edge
    if len(short) != 2 or not data.size <= short[0] <= short[1]:
        raise UserError(
            f"data.short_edge={short} must be [least, greatest] with data.size={data.size} <= least <= greatest"
        )
    for key, batch in batches(config).items():
        if batch % data.order.lanes:
            raise UserError(f"data.order.lanes={data.order.lanes} does not divide {key}={batch}: choose a divisor")
        if (group := config.model.batch_norm.group) and batch % group:
            raise UserError(
                f"model.batch_norm.group={group} does not divide {key}={batch}: use 0, or a divisor of at least 2"
            )
    if config.monitor.evaluate_every and not data.val:
        raise UserError(
            f"monitor.evaluate_every={config.monitor.evaluate_every} needs held-out photos: set data.val to shards of "
            "them"
        )


def _check_contest(config: Config) -> None:
    """Refuse incompatible settings of the losses and the discriminators."""
    losses, judge = config.losses, config.model.discriminator
    penalties = {"losses.r1": losses.r1, "losses.gradient_penalty": losses.gradient_penalty}
    penalties |= {f"losses.penalties.{name}": 1.0 for name, each in losses.penalties.items() if each is not None}
    for key, weight in penalties.items():
        # Discriminators of the user's own are checked when they are built.
        if weight and judge.normalization == "batch" and not judge.custom:
            raise UserError(
                f"{key}={weight} needs each photo judged by itself, but batch norm mixes the photos of a batch: "
                "set model.discriminator.normalization to spectral or none"
            )
    if judge.batch_norm == "together" and judge.normalization != "batch":
        raise UserError(
            f"model.discriminator.batch_norm=together, but model.discriminator.normalization={judge.normalization} "
            "has no batch norm: leave one of them out"
        )
    if losses.label_smoothing and losses.adversarial not in ("non_saturating", "saturating"):
        raise UserError(
            f"losses.label_smoothing={losses.label_smoothing} smooths the cross-entropy's target, and "
            f"losses.adversarial={losses.adversarial} has none: set it to 0"
        )
    if losses.adversarial == "wasserstein" and not losses.gradient_penalty:
        raise UserError(
            "losses.adversarial=wasserstein grows without bound by itself: set losses.gradient_penalty=10, say"
        )


def _check_optimizers(config: Config) -> None:
    for network in ("completion", "discriminator"):
        if getattr(config.optimizers, network).kind == "muon" and config.engine.zero_stage:
            raise UserError(
                f"optimizers.{network}.kind=muon updates whole matrices, and engine.zero_stage="
                f"{config.engine.zero_stage} gives each rank a piece of the weights: use engine.zero_stage=0, adam or "
                "adadelta"
            )


def _check_phases(config: Config) -> None:
    if not config.phases:
        raise UserError("phases is empty: choose a recipe, such as recipe=modern")
    for name, phase in config.phases.items():
        _check_values(phase, f"phases.{name}.")
        if phase.steps and not (phase.completion_every or phase.discriminator_every):
            raise UserError(
                f"phases.{name} updates no network: set completion_every or discriminator_every, or steps=0"
            )
        if phase.size and phase.size != config.data.size and (phase.discriminator_every or phase.alpha):
            raise UserError(
                f"phases.{name}.size={phase.size} differs from data.size={config.data.size}, the only one that the "
                "discriminators take: set it to 0, or discriminator_every and alpha"
            )
        if phase.balance and not (phase.alpha and phase.reconstruction and phase.balance_steps):
            raise UserError(
                f"phases.{name}.balance={phase.balance} weighs the adversarial loss against the reconstruction: "
                "alpha, reconstruction and balance_steps must be above 0"
            )
    if not any(phase.steps for phase in config.phases.values()):
        raise UserError("every phase has steps=0: nothing to train")
