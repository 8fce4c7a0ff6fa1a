"""Photo size and batch of each step: phases may have their own (``phases.*.size``, ``phases.*.batch``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from glci_dist.config import Config, DataConfig, HolesConfig, OrderConfig
from glci_dist.data.holes import LEAST_RADIUS, check_holes
from glci_dist.data.order import Order, OrderPosition
from glci_dist.errors import UserError


@dataclass(frozen=True)
class Stage:
    """Consecutive steps with photos of one size and batches of one length: of one phase, or of several that are alike,
    so that they have one data set.
    """

    steps: int
    size: int
    """Side of the photos, px."""
    batch: int
    """Photos per step, over all ranks."""


def stages(config: Config) -> list[Stage]:
    """The stages of a run in order; successive phases that are alike are one."""
    found: list[Stage] = []
    for phase in config.phases.values():
        if not phase.steps:
            continue
        stage = Stage(phase.steps, phase.size or config.data.size, phase.batch or config.global_batch)
        if found and (found[-1].size, found[-1].batch) == (stage.size, stage.batch):
            found[-1] = replace(stage, steps=found[-1].steps + stage.steps)
        else:
            found.append(stage)
    return found


def photos_before(config: Config, step: int) -> int:
    """Photos of the steps before ``step``: the order of samples goes on after so many."""
    total, start = 0, 0
    for stage in stages(config):
        total += stage.batch * max(0, min(stage.steps, step - start))
        start += stage.steps
    return total


def orders(counts: NDArray[np.int64], run_stages: Sequence[Stage], *, seed: int, config: OrderConfig) -> list[Order]:
    """The order of each stage, which goes on where the one before it ends.

    Raises ``UserError`` if the lanes do not divide a batch, or the corpus is smaller than one.
    """
    made: list[Order] = []
    step, position = 0, OrderPosition()
    for stage in run_stages:
        made.append(Order(counts, seed=seed, global_batch=stage.batch, config=config, start=position))
        step += stage.steps
        position = made[-1].position(step)
    return made


def order_at(counts: NDArray[np.int64], config: Config, step: int) -> tuple[Order, Stage]:
    """The order and the stage of a step of a run; raises ``UserError`` as ``orders``, or if there is no such step."""
    run_stages, ends = stages(config), 0
    for stage, order in zip(
        run_stages, orders(counts, run_stages, seed=config.seed, config=config.data.order), strict=True
    ):
        ends += stage.steps
        if step < ends:
            return order, stage
    raise UserError(f"step {step} lies outside a schedule of {ends} steps")


def at_size(data: DataConfig, holes: HolesConfig, size: int) -> tuple[DataConfig, HolesConfig]:
    """The preprocessing and the holes for photos of ``size`` px: every length in proportion to ``data.size``.

    Strokes are no thinner than the thinnest allowed.
    """
    if size == data.size:
        return data, holes
    ratio = size / data.size

    def scaled(length: int) -> int:
        return max(1, round(ratio * length))

    return (
        replace(data, size=size, short_edge=[max(size, scaled(edge)) for edge in data.short_edge]),
        replace(
            holes,
            min_side=scaled(holes.min_side),
            max_side=scaled(holes.max_side),
            patch=scaled(holes.patch),
            stroke_radius=[max(LEAST_RADIUS, ratio * radius) for radius in holes.stroke_radius],
        ),
    )


def sizes_of_photos(config: Config) -> list[tuple[int, int]]:
    """Sides of photos and of local patches, px: at ``data.size``, then at each other size that a phase has."""
    sizes = [config.data.size, *(phase.size for phase in config.phases.values() if phase.steps and phase.size)]
    return [(size, at_size(config.data, config.holes, size)[1].patch) for size in dict.fromkeys(sizes)]


def check_all_holes(config: Config) -> None:
    """Raise ``UserError`` for the first rule that the holes break at ``data.size`` or at a phase's size."""
    check_holes(config.holes, config.data.size)
    for name, phase in config.phases.items():
        if phase.steps and phase.size:
            if phase.size % 4:
                raise UserError(
                    f"phases.{name}.size={phase.size} is not a multiple of 4: the completion network halves the photo "
                    "twice"
                )
            try:
                check_holes(at_size(config.data, config.holes, phase.size)[1], phase.size)
            except UserError as error:
                raise UserError(f"phases.{name}.size={phase.size}: holes and patches scaled to it: {error}") from error
