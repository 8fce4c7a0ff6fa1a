"""Which checkpoints are kept, and how the others are deleted."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from glci_dist.checkpoints.manifest import Checkpoint, Damaged, check_files, folders, read
from glci_dist.runs.attempts import Attempt


@dataclass(frozen=True)
class Retention:
    """What is kept: the newest ``keep`` (at least 2), multiples of ``keep_every`` (0: none), each phase's end."""

    keep: int
    keep_every: int


@dataclass(frozen=True)
class RetentionPlan:
    """The complete checkpoints of a run, sorted by retention."""

    newest: list[Checkpoint]
    """The newest ``keep``, newest first."""
    unwanted: list[Checkpoint]
    """To be deleted, oldest first."""


def plan_retention(root: Path, retention: Retention) -> RetentionPlan:
    """Which checkpoints in ``root`` are kept and which are not. Raises ``OSError``, ``TemporarilyUnreadable``.

    Incomplete ones are ignored: they are neither counted nor deleted, and the next resuming run reports them.
    """
    whole = [checkpoint for _, path in folders(root) if (checkpoint := _read_complete(path)) is not None]
    newest = whole[: retention.keep]
    unwanted = [
        checkpoint
        for checkpoint in whole[retention.keep :]
        if not checkpoint.manifest.ends_phase
        and not (retention.keep_every and checkpoint.step % retention.keep_every == 0)
    ]
    return RetentionPlan(newest, unwanted[::-1])


def delete(path: Path, attempt: Attempt) -> None:
    """Delete a checkpoint. Raises ``OSError``, and then leaves it unchanged.

    It is first renamed into the attempt's folder, so that a kill leaves it whole or gone, and so that this fails if a
    newer attempt owns the run (``Attempt.fenced``).
    """
    sys.audit("glci.checkpoint", "delete", path.name)
    trash = attempt.folder / f"{path.name}.deleting"
    os.rename(path, trash)
    # The next attempt removes what is left.
    shutil.rmtree(trash, ignore_errors=True)


def _read_complete(path: Path) -> Checkpoint | None:
    try:
        checkpoint = read(path)
    except Damaged:
        return None
    return None if check_files(checkpoint, contents=False) else checkpoint
