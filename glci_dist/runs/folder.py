"""A run's folder: whose configuration and corpus it belongs to."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glci_dist import compose, stored_config
from glci_dist.config import Config
from glci_dist.data.index import write_whole
from glci_dist.errors import Ending, UserError
from glci_dist.runs import attempts
from glci_dist.runs.attempts import Attempt
from glci_dist.runs.endings import Endings
from glci_dist.stored_config import GONE, NEW, StoredConfig

_FREE = (
    "runs",
    "metrics",
    "loggers",
    "monitor.",
    "data.cache.",
    "data.workers",
    "data.prefetch",
    "data.tolerance",
    "data.val",
    "engine.threads",
    "engine.timeout_s",
    "engine.not_finite",
    "engine.zero_stage",
    "checkpoints.",
    "cluster.",
)
"""Keys that may change when a run is resumed: they do not touch its result."""

_NEVER = (
    "data.size",
    "model.completion.",
    "model.discriminator.",
    "optimizers.completion.kind",
    "optimizers.discriminator.kind",
)
"""Keys whose change no ``checkpoints.accept`` helps: what was saved would not fit. A key that only one of two versions
has may be accepted all the same: whether the tensors fit, their loading tells."""

_FIRST = ("attempts", "journal.jsonl", "code", "jobs")
"""What submitting and starting make before the configuration is written; all that a kill in between leaves."""


class RunFolder:
    """``runs/<name>``: ``config.yaml``, ``journal.jsonl``, ``checkpoints``, ``tensorboard``, ``pictures``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.corpus_file = path / "corpus.sha256"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.pictures = path / "pictures"
        self.journal = path / "journal.jsonl"

    def check(self, config: Config, corpus: str) -> list[str]:
        """Raise ``UserError`` where the folder is another configuration's or corpus'; writes nothing.

        ``corpus`` is the digest of the shards: the same path may hold other photos one day. Returns the
        changes since the run was last started that ``checkpoints.accept`` lets pass, each with both values.
        """
        self._check_place()
        changes: list[str] = []
        # Unlike lexists, this raises where the file system does not answer.
        if self.config_file.exists() or self.config_file.is_symlink():
            changes = result_changes(self._stored(), config)
        elif (
            self.path.is_dir()
            # No start of a run has left its marks here.
            and not ((self.path / "attempts").is_dir() and self.journal.exists())
            and any(path.name not in _FIRST for path in self.path.iterdir())
        ):
            raise UserError(f"{self.path} exists and is no run's folder: choose another name=... or runs=...")
        if self.corpus_file.exists() and self.corpus_file.read_text(encoding="utf-8") != corpus:
            changes.append(f"data.shards holds other shards than {self.path} was trained on")
        refuse(self.path, [line for line in changes if not is_accepted(line, config.checkpoints.accept)])
        return changes

    def begin_attempt(
        self, config: Config, corpus: str, *, ranks: int, facts: Mapping[str, Any] | None = None
    ) -> tuple[Attempt, list[str]]:
        """Begin the next attempt and make the folder this configuration's and corpus'; the accepted changes.

        ``facts`` go into its lease. Raises what ``check`` does, ``UserError`` where nothing can be written, and
        ``Superseded``.
        """
        # Before the older attempt is fenced off: it may run, and go on well.
        RunFolder(self.path).check(config, corpus)
        try:
            attempt = attempts.begin(self.path, ranks=ranks, facts=facts)
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            return attempt, self._make_own(attempt, config, corpus)
        except Ending as ending:
            Endings(attempt, rank=0, host=socket.gethostname()).fail(str(ending))
            raise

    def _make_own(self, attempt: Attempt, config: Config, corpus: str) -> list[str]:
        try:
            # Again: another attempt may have begun, and ended, meanwhile.
            changes = self.check(config, corpus)
            with attempt.fenced():
                for path, content in ((self.config_file, compose.to_yaml(config)), (self.corpus_file, corpus)):
                    aside = attempt.folder / path.name
                    write_whole(aside, content.encode())
                    os.rename(aside, path)
            for folder in (self.checkpoints, self.tensorboard, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        return changes

    def _check_place(self) -> None:
        """Raise ``UserError`` where nothing can be written, as far as that shows without writing."""
        standing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        reason = errno.ENOTDIR if not standing.is_dir() else errno.EACCES
        if reason == errno.ENOTDIR or not os.access(standing, os.W_OK | os.X_OK):
            raise unwritable(self.path, OSError(reason, os.strerror(reason)))

    def _stored(self) -> StoredConfig:
        """What ``config.yaml`` holds; raises ``UserError`` with the way out where it is none."""
        try:
            return stored_config.read(self.config_file)
        except UserError as error:
            raise UserError(
                f"{error}; mend it, or remove it and start the run with the configuration that it had (each checkpoint "
                "holds that too, and is compared)"
            ) from error

    def version_notes(self) -> list[str]:
        """What of ``config.yaml`` is of another version than this one, a line each."""
        return stored_config.read(self.config_file).notes() if self.config_file.exists() else []


def unwritable(run: Path, error: OSError) -> UserError:
    """What to say where something of a run's folder cannot be written."""
    where = "" if error.filename in (None, str(run)) else f" ({error.filename})"
    room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return UserError(f"{run} cannot be written: {error.strerror}{where}: {room}choose another runs=...")


def result_changes(before: StoredConfig, now: Config) -> list[str]:
    """The differences of two configurations that touch a run's result: ``key: before / now``."""
    return [line for line in before.changes(now) if not line.startswith(_FREE)]


def is_accepted(change: str, accepted: Sequence[str]) -> bool:
    """Whether a line of ``result_changes`` is let pass by ``checkpoints.accept``."""
    key = _key(change)
    return not _is_final(change) and any(key == each or key.startswith(f"{each}.") for each in accepted)


def refuse(path: Path, changes: Sequence[str]) -> None:
    """Raise ``UserError`` with changes that ``path`` forbids and the way out, if there are any."""
    if not changes:
        return
    more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
    keys = [_key(line) for line in changes]
    way_out = "choose another name=..., or remove that folder"
    if not any(map(_is_final, changes)):
        way_out += f"; to go on all the same: 'checkpoints.accept=[{','.join(keys)}]'"
    raise UserError(
        f"{path} belongs to another configuration (there / here): {'; '.join(changes[:3])}{more}: {way_out}"
    )


def _is_final(change: str) -> bool:
    is_of_one_version = change.endswith(f" / {GONE}") or f": {NEW} / " in change
    return _key(change).startswith(_NEVER) and not is_of_one_version


def _key(change: str) -> str:
    return re.split("[: ]", change)[0]
