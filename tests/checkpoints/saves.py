"""Checkpoints of a world of one for tests: small, but written by the real saver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from glci_dist.checkpoints.registry import CheckpointState, VectorShard
from glci_dist.checkpoints.saver import Saver, SaveResult
from glci_dist.cluster.world import joined
from glci_dist.config import CheckpointsConfig, EngineConfig
from glci_dist.runs import attempts

ALONE = EngineConfig(device="cpu", threads=1)
KEEP_ALL = CheckpointsConfig(keep=1000, keep_every=0)


def state(step: int) -> CheckpointState:
    """A state that is all ``step``."""
    whole = {"completion/weight": torch.full((30, 20), float(step)), "completion/count": torch.tensor(step)}
    parts = {
        "completion.optimizer/exp_avg": VectorShard(
            0, 600, [torch.full((200,), float(step)), torch.full((20, 20), step + 0.5)]
        )
    }
    return CheckpointState(whole, parts, {"optimizers": {}, "step": step})


@contextmanager
def saver(run: Path, retention: CheckpointsConfig = KEEP_ALL, saved: list[SaveResult] | None = None) -> Iterator[Saver]:
    """The saver of a new attempt at ``run``, in this process; ``saved`` gets what became of each save."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    with joined(ALONE) as world:
        told = [] if saved is None else saved
        made = Saver(run / "checkpoints", attempts.begin(run, ranks=1), world, retention, on_saved=told.append)
        yield made
        made.wait()


def save_some(
    run: Path, steps: tuple[int, ...], retention: CheckpointsConfig = KEEP_ALL, ends: tuple[int, ...] = ()
) -> None:
    """Save at ``steps``, of which ``ends`` end a phase."""
    with saver(run, retention) as made:
        for step in steps:
            made.save(state(step), step=step, phase="joint", ends_phase=step in ends)
