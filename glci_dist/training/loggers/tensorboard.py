"""Logs scalars, pictures and texts to TensorBoard."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from glci_dist.training.loggers.base import Logger


def _quieten_writers() -> None:
    """Suppress the traceback of TensorBoard's writing thread: the next write raises the same error here."""
    previous_hook = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            previous_hook(arguments)

    threading.excepthook = hook


class TensorBoard(Logger):
    """Writes event files into ``folder``; panels are in TensorBoard's CUSTOM SCALARS."""

    def __init__(self, folder: Path) -> None:
        _quieten_writers()
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def begin(self, step: int, panels: Mapping[str, Sequence[str]]) -> None:
        self.close()
        self._writer = SummaryWriter(str(self._folder), purge_step=step)
        with self._writing() as writer:
            charts = {title: ["Multiline", list(names)] for title, names in panels.items()}
            writer.add_custom_scalars({"adversarial training": charts})

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        with self._writing() as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        with self._writing() as writer:
            writer.add_image(name, picture, step, dataformats="HWC")

    def log_text(self, name: str, text: str, step: int) -> None:
        with self._writing() as writer:
            writer.add_text(name, text, step)

    def close(self) -> None:
        with suppress(OSError):
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[SummaryWriter]:
        """The writer; it is replaced after an ``OSError``, as it could never write again."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder))
        try:
            yield self._writer
        except OSError:
            self._writer = None
            raise
