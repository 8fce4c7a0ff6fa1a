"""A run's curves, pictures and words in TensorBoard (rank 0)."""

from __future__ import annotations

import resource
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from glci_dist.compose import to_yaml
from glci_dist.config import Config
from glci_dist.diagnosis.states import Finding, State
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.scalars import scalars


def _quieten_writers() -> None:
    """Let TensorBoard's writing thread end without a traceback: the next write raises the same error here."""
    told = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__name__ != "_AsyncWriterThread":
            told(arguments)

    threading.excepthook = hook


_PANEL = {
    "contest": {
        "state (docs/recipes.md)": ["Multiline", [f"doctor/{state}" for state in State]],
        "share of photos that the discriminators tell": ["Multiline", ["accuracy/real", "accuracy/completed"]],
        "losses": ["Multiline", ["loss/adversarial", "loss/real", "loss/completed"]],
        "gradient at the output": [
            "Multiline",
            ["gradient_at_output/reconstruction", "gradient_at_output/adversarial"],
        ],
        "difference between two": ["Multiline", ["contest/diversity", "contest/diversity_of_photos"]],
        "pattern of the enlargements": ["Multiline", ["contest/lattice", "contest/lattice_of_photos"]],
    }
}
"""Of the contest, in TensorBoard's CUSTOM SCALARS: what belongs together in one chart."""


class TensorBoard(Callback):
    """Scalars (means since they were last written), the contest's state and the configuration."""

    is_display = True

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        first_step: int,
        device: torch.device,
        shares: Callable[[], dict[str, float]] = dict,
        slowest_host: Callable[[], float] = lambda: 1.0,
        judged: Callable[[], tuple[int, Finding] | None] = lambda: None,
    ) -> None:
        """``shares``: of the run's wall time, by what it went into. ``slowest_host``: its time over the others'.

        ``judged``: the step and the finding of the contest's last diagnosis.
        """
        _quieten_writers()
        self._folder = folder
        self._shares, self._slowest_host, self._judged = shares, slowest_host, judged
        self._told: tuple[int, Finding] | None = None
        self._every = config.monitor.scalars_every
        self._global_batch = config.global_batch
        self._device = device
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._replaced = self._skipped = 0
        self._written = time.perf_counter()
        self._steps = 0
        self._configuration = f"```\n{to_yaml(config)}\n```"
        self._writer: SummaryWriter | None = self._open(first_step)

    def _open(self, step: int) -> SummaryWriter:
        """A writer to which all that was written of ``step`` and later ones is void."""
        writer = SummaryWriter(str(self._folder), purge_step=step)
        writer.add_text("configuration", self._configuration, step)
        writer.add_custom_scalars(_PANEL)
        return writer

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report = done.report
        self._replaced += report.replaced
        self._skipped += report.skipped
        self._steps += 1
        for tag, value in scalars(report):
            self._sums[tag] += value
            self._counts[tag] += 1
        if (report.moment.step + 1) % self._every == 0 or report.moment.ends_phase:
            self._write(report.moment.step)
            self._tell()

    def _write(self, step: int) -> None:
        now = time.perf_counter()
        means = {tag: total / self._counts[tag] for tag, total in self._sums.items()}
        means["speed/images_per_second"] = self._steps * self._global_batch / (now - self._written)
        means["data/replaced_samples"] = self._replaced
        means["updates/skipped"] = self._skipped
        means["memory/peak_rank0_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if self._device.type == "cuda":
            means["memory/peak_gpu0_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        means["time/slowest_host_ratio"] = self._slowest_host()
        means |= {f"goodput/{kind}": share for kind, share in self._shares().items()}
        self._sums.clear()
        self._counts.clear()
        self._written, self._steps = now, 0
        with self._writing() as writer:
            for tag, value in means.items():
                writer.add_scalar(tag, value, step)

    def _tell(self) -> None:
        """Show what the contest was last judged to be in: 1 for that state, and in words where it has changed."""
        judged, told = self._judged(), self._told
        self._told = judged
        if judged is None or judged == told:
            return
        step, finding = judged
        with self._writing() as writer:
            for state in State:
                writer.add_scalar(f"doctor/{state}", float(state == finding.state), step)
            if told is None or finding.state != told[1].state:
                writer.add_text("doctor", finding.line, step)

    def add_picture(self, picture: np.ndarray, step: int) -> None:
        """Show a picture ``(H, W, 3)``, uint8."""
        with self._writing() as writer:
            writer.add_image("pictures", picture, step, dataformats="HWC")

    def on_evaluation(self, figures: Mapping[str, float], step: int) -> None:
        """Show what an evaluation found."""
        with self._writing() as writer:
            for name, value in figures.items():
                writer.add_scalar(f"evaluation/{name}", value, step)

    def on_rewind(self, step: int) -> None:
        self.close()
        self._writer = self._open(step)

    def close(self) -> None:
        with suppress(OSError):
            # A run that the doctor stopped has been judged since it last wrote.
            self._tell()
            with self._writing() as writer:
                writer.close()

    @contextmanager
    def _writing(self) -> Iterator[SummaryWriter]:
        """The writer; one that could not write never does again, so another one takes its place."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder))
        try:
            yield self._writer
        except OSError:
            self._writer = None
            raise
