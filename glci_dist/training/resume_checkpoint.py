"""Finds the checkpoint to resume from, sets damaged ones aside, and refuses those of another configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glci_dist import stored_config
from glci_dist.checkpoints.manifest import Checkpoint, TemporarilyUnreadable, newest_complete
from glci_dist.config import Config
from glci_dist.errors import Fault
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.folder import is_accepted, refuse, result_changes
from glci_dist.stored_config import StoredConfig


def newest_intact(root: Path, attempt: Attempt, *, damaged: Callable[[Path, str, Path], None]) -> Checkpoint | None:
    """The newest intact checkpoint in ``root``; newer, damaged ones are set aside. None if there are none at all.

    ``damaged`` is called for each with its old path, the problem and its new path. Raises ``Fault`` if one cannot be
    read or moved, and, without renaming any, if all are damaged.
    """
    # Imports torch, which the rest of this module, and submitting a run, do not need.
    from glci_dist.checkpoints import reading

    broken: list[tuple[Path, str]] = []
    try:
        found = reading.newest_intact(root, damaged=lambda *each: broken.append(each))
    except (TemporarilyUnreadable, OSError) as error:
        raise Fault(f"{error}: the checkpoints stand as they were; mend that, and the same command goes on") from error
    if broken and found is None:
        # Perhaps the disk cannot be read just now: do not rename any, and do not start at step 0.
        path, problem = broken[0]
        raise Fault(
            f"none of the {len(broken)} checkpoint(s) in {path.parent} is whole ({path.name}: {problem}): "
            "they stand as they were; mend what keeps them from being read, or remove them to begin at step 0"
        )
    for path, problem in broken:
        try:
            with attempt.fenced():
                aside = reading.set_aside(path, attempt)
        except OSError as error:
            raise Fault(
                f"{path} is damaged ({problem}) and cannot be set aside: {error.strerror}: mend that, "
                "and the same command goes on from an older one"
            ) from error
        damaged(path, problem, aside)
    return found


def saved_configuration(checkpoint: Checkpoint) -> StoredConfig:
    """The configuration that a checkpoint was saved with; raises ``UserError`` if it holds none."""
    return stored_config.parse(str(checkpoint.manifest.facts.get("config", "")), checkpoint.path)


def check_newest_checkpoint(root: Path, config: Config) -> None:
    """``check_configuration`` of the checkpoint that the run will resume from, as far as its manifest tells.

    Called before the lease is taken, so that a refused command does not fence off an attempt that still runs.
    """
    checkpoint, _ = newest_complete(root)
    if checkpoint is not None:
        check_configuration(checkpoint, config)


def check_configuration(checkpoint: Checkpoint, config: Config) -> None:
    """Raise ``UserError`` if it was saved with another configuration, except for keys in ``checkpoints.accept``."""
    changes = result_changes(saved_configuration(checkpoint), config)
    refuse(checkpoint.path, [line for line in changes if not is_accepted(line, config.checkpoints.accept)])
