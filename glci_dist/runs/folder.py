"""A run's folder: whose configuration and corpus it belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from glci_dist import compose
from glci_dist.config import Config
from glci_dist.data.index import write_whole
from glci_dist.errors import UserError

_FREE = (
    "runs",
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
)
"""Keys that may change when a run is resumed: they do not touch its result."""

_NEVER = ("data.size", "model.", "optimizers.completion.kind", "optimizers.discriminator.kind")
"""Keys whose change no ``checkpoints.accept`` helps: what was saved would not fit."""


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

    def claim(self, config: Config, corpus: str) -> list[str]:
        """Make the folder this configuration's and corpus'; raises ``UserError`` where it is another's.

        ``corpus`` is the digest of the shards: the same path may hold other photos one day. Returns the
        changes since the run began that ``checkpoints.accept`` lets pass, each with both values.
        """
        changes: list[str] = []
        if self.config_file.exists():
            changes = [
                line
                for line in compose.differences(compose.read(self.config_file), config)
                if not line.startswith(_FREE)
            ]
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"{self.path} exists and is no run's folder: choose another name=... or runs=...")
        if self.corpus_file.exists() and self.corpus_file.read_text() != corpus:
            changes.append(f"data.shards holds other shards than {self.path} was trained on")
        self._refuse([line for line in changes if not _is_accepted(line, config.checkpoints.accept)])
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.config_file, compose.to_yaml(config).encode())
            write_whole(self.corpus_file, corpus.encode())
            for folder in (self.checkpoints, self.tensorboard, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}: choose another runs=...") from error
        return changes

    def _refuse(self, changes: Sequence[str]) -> None:
        if not changes:
            return
        more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
        keys = [re.split("[: ]", line)[0] for line in changes]
        way_out = "choose another name=..., or remove that folder"
        if not any(key.startswith(_NEVER) for key in keys):
            way_out += f"; to go on all the same: 'checkpoints.accept=[{','.join(keys)}]'"
        raise UserError(
            f"{self.path} belongs to another configuration (there / here): {'; '.join(changes[:3])}{more}: {way_out}"
        )


def _is_accepted(change: str, accepted: Sequence[str]) -> bool:
    key = re.split("[: ]", change)[0]
    return not key.startswith(_NEVER) and any(key == each or key.startswith(f"{each}.") for each in accepted)
