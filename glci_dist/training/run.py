"""A run's folder: whose configuration it belongs to, and its journal."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

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
)
"""Keys that may change when a run is resumed: they do not touch its result."""


class RunFolder:
    """``runs/<name>``: ``config.yaml``, ``journal.jsonl``, ``checkpoints``, ``tensorboard``, ``pictures``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.corpus_file = path / "corpus.sha256"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self.pictures = path / "pictures"
        self.journal = Journal(path / "journal.jsonl")

    def claim(self, config: Config, corpus: str) -> None:
        """Make the folder this configuration's and corpus'; raises ``UserError`` where it is another's.

        ``corpus`` is the digest of the shards: the same path may hold other photos one day.
        """
        if self.config_file.exists():
            differing = [
                line
                for line in compose.differences(compose.read(self.config_file), config)
                if not line.startswith(_FREE)
            ]
            if differing:
                more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
                raise UserError(
                    f"{self.path} belongs to another configuration (there / here): {'; '.join(differing[:3])}{more}: "
                    "choose another name=..., or remove that folder"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"{self.path} exists and is no run's folder: choose another name=... or runs=...")
        if self.corpus_file.exists() and self.corpus_file.read_text() != corpus:
            raise UserError(
                f"{self.path} was trained on other shards than {config.data.shards} holds now: "
                "choose another name=..., or bring the old shards back"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.config_file, compose.to_yaml(config).encode())
            write_whole(self.corpus_file, corpus.encode())
            for folder in (self.checkpoints, self.tensorboard, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}: choose another runs=...") from error


class Journal:
    """What happened in a run, one JSON object a line. One rank writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, *, step: int, **details: Any) -> None:
        """Append an event of ``step`` with the time (seconds since 1970), host and process."""
        entry = {
            "time": round(time.time(), 3),
            "event": event,
            "step": step,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **details,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Every event, oldest first."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]
