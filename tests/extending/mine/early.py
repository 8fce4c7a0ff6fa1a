"""A callback with state: it ends the run where the reconstruction has not got better for long."""

from collections.abc import Mapping
from typing import Any

from glci_dist.extensions import Callback, Control, Fault, TrainedStep


class EarlyStopping(Callback):
    """``patience``: steps without a new least value of ``loss/reconstruction``."""

    def __init__(self, *, patience: int = 1000) -> None:
        self._patience = patience
        self._best, self._since = float("inf"), 0

    def after_step(self, done: TrainedStep, control: Control) -> None:
        # The report is equal on every rank, so that all end alike.
        value = done.report.values.get("loss/reconstruction")
        if value is None:
            return
        self._since = 0 if value < self._best else self._since + 1
        self._best = min(self._best, value)
        if self._since >= self._patience:
            control.end(Fault(f"the reconstruction error has not fallen for {self._patience} steps"))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._since = state["best"], state["since"]
