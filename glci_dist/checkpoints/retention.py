"""Which checkpoints are kept."""

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
class Sorted:
    """The checkpoints of a run that look whole, by what retention says of them."""

    newest: list[Checkpoint]
    """The newest ``keep``, newest first."""
    unwanted: list[Checkpoint]
    """Oldest first."""


def sort_out(root: Path, retention: Retention) -> Sorted:
    """Which checkpoints in ``root`` are not kept. Raises ``OSError``, ``Unreadable``.

    Only those that look whole, by manifest and sizes, count among the newest, and one that does not is not
    touched: it may be all that is left of a step, and whoever resumes names it.
    """
    whole = [checkpoint for _, path in folders(root) if (checkpoint := _look(path)) is not None]
    newest = whole[: retention.keep]
    unwanted = [
        checkpoint
        for checkpoint in whole[retention.keep :]
        if not checkpoint.manifest.ends_phase
        and not (retention.keep_every and checkpoint.step % retention.keep_every == 0)
    ]
    return Sorted(newest, unwanted[::-1])


def delete(path: Path, attempt: Attempt) -> None:
    """Remove a checkpoint. Raises ``OSError``, and leaves it as it was then.

    It is renamed first, so that a kill leaves it whole or not at all; and into the attempt's folder, which
    a newer attempt takes away, whose checkpoint it may be (``Attempt.fenced``).
    """
    sys.audit("glci.checkpoint", "delete", path.name)
    trash = attempt.folder / f"{path.name}.deleting"
    os.rename(path, trash)
    # What is left of it is in nobody's way: the next attempt clears it.
    shutil.rmtree(trash, ignore_errors=True)


def _look(path: Path) -> Checkpoint | None:
    try:
        checkpoint = read(path)
    except Damaged:
        return None
    return None if check_files(checkpoint, contents=False) else checkpoint
