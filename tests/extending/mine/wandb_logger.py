"""Weights & Biases: ``pip install wandb``, and ``wandb login`` or ``mode=offline``."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import numpy as np
import wandb

from glci_dist.extensions import Logger, RunInfo


class Mode(StrEnum):
    """Written in the configuration by its name: ``OFFLINE``, ``ONLINE``."""

    OFFLINE = "offline"
    ONLINE = "online"


class WandbLogger(Logger):
    """A run of the same name goes on in the same W&B run."""

    def __init__(self, *, run: RunInfo, project: str, mode: Mode = Mode.OFFLINE) -> None:
        self._run, self._project, self._mode = run, project, mode

    def begin(self, step: int, panels: Mapping[str, Sequence[str]]) -> None:
        self._wandb = wandb.init(
            project=self._project,
            id=self._run.name,
            name=self._run.name,
            dir=str(self._run.folder),
            config=dict(self._run.config),
            mode=self._mode.value,
            resume="allow",
        )
        # Steps that are run again after a rollback are older than W&B's own count.
        self._wandb.define_metric("*", step_metric="step")

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._wandb.log({**values, "step": step})

    def log_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._wandb.log({name: wandb.Image(picture), "step": step})

    def log_text(self, name: str, text: str, step: int) -> None:
        self._wandb.log({f"text/{name}": wandb.Html(f"<pre>{text}</pre>"), "step": step})

    def close(self) -> None:
        self._wandb.finish()
