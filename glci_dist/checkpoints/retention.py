"""Which checkpoints are kept, and how the others are deleted."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from glci_dist.checkpoints.manifest import Checkpoint, Damaged, check_files, folders, read
from glci_dist.config import CheckpointsConfig
from glci_dist.runs.attempts import Attempt


def plan_retention(root: Path, retention: CheckpointsConfig) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """The newest complete checkpoints in ``root``, newest first, and those to be deleted, oldest first.

    Kept are the newest ``keep``, multiples of ``keep_every`` and each phase's end. Incomplete ones are neither counted
    nor deleted: the next resuming run reports them. Raises ``OSError``, ``TemporarilyUnreadable``.
    """
    whole = [checkpoint for _, path in folders(root) if (checkpoint := _read_complete(path)) is not None]
    unwanted = [
        checkpoint
        for checkpoint in whole[retention.keep :]
        if not checkpoint.manifest.ends_phase
        and not (retention.keep_every and checkpoint.step % retention.keep_every == 0)
    ]
    return whole[: retention.keep], unwanted[::-1]


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
