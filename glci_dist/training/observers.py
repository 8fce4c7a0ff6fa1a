"""What watches a run: TensorBoard, the progress line, pictures. Only rank 0 has any."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from glci_dist.compose import to_yaml
from glci_dist.config import Config
from glci_dist.diagnosis.states import Finding, State
from glci_dist.training.heartbeat import Report
from glci_dist.training.pictures import PictureGrid
from glci_dist.training.scalars import scalars


class Observer(Protocol):
    """Sees every step's report, in order; may raise ``OSError`` and be called again."""

    def see(self, report: Report) -> None: ...

    def rewind(self, step: int) -> None:
        """The run goes on from ``step``: what was shown of it and of later ones is void."""
        ...

    def close(self) -> None: ...


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


class TensorBoard:
    """Scalars (means since they were last written), the contest's state and the configuration."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        first_step: int,
        device: torch.device,
        shares: Callable[[], dict[str, float]] = dict,
        slowest_host: Callable[[], float] = lambda: 1.0,
        finding: Callable[[], Finding | None] = lambda: None,
    ) -> None:
        """``shares``: of the run's wall time, by what it went into. ``slowest_host``: its time over the others'.

        ``finding``: the contest's last diagnosis.
        """
        _quieten_writers()
        self._folder = folder
        self._shares, self._slowest_host, self._finding = shares, slowest_host, finding
        self._told: State | None = None
        self._every = config.monitor.scalars_every
        self._global_batch = config.global_batch
        self._device = device
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._replaced = self._skipped = 0
        self._written = time.perf_counter()
        self._steps = 0
        self._writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=first_step)
        self._writer.add_text("configuration", f"```\n{to_yaml(config)}\n```", first_step)
        self._writer.add_custom_scalars(_PANEL)

    def see(self, report: Report) -> None:
        self._replaced += report.replaced
        self._skipped += report.skipped
        self._steps += 1
        for tag, value in scalars(report):
            self._sums[tag] += value
            self._counts[tag] += 1
        if (report.moment.step + 1) % self._every == 0 or report.moment.ends_phase:
            self._write(report.moment.step)
            if report.moment.is_contest and (finding := self._finding()) is not None:
                self._tell(finding, report.moment.step)

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

    def _tell(self, finding: Finding, step: int) -> None:
        """Show the contest's state, 1 for the one that it is in, and in words where it has changed."""
        with self._writing() as writer:
            for state in State:
                writer.add_scalar(f"doctor/{state}", float(state == finding.state), step)
            if finding.state != self._told:
                writer.add_text("doctor", finding.line, step)
                self._told = finding.state

    def add_picture(self, picture: np.ndarray, step: int) -> None:
        """Show a picture ``(H, W, 3)``, uint8."""
        with self._writing() as writer:
            writer.add_image("pictures", picture, step, dataformats="HWC")

    def add_figures(self, figures: Mapping[str, float], step: int) -> None:
        """Show what an evaluation found."""
        with self._writing() as writer:
            for name, value in figures.items():
                writer.add_scalar(f"evaluation/{name}", value, step)

    def rewind(self, step: int) -> None:
        self.close()
        self._told = None
        self._writer = SummaryWriter(str(self._folder), purge_step=step)

    def close(self) -> None:
        with suppress(OSError), self._writing() as writer:
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


class Progress:
    """A line with phase, step, speed and time left: live on a terminal, else one every 30 s."""

    _SECONDS = 30.0

    def __init__(self, *, first_step: int, steps: int, global_batch: int) -> None:
        self._first, self._steps, self._global_batch = first_step, steps, global_batch
        self._live = sys.stderr.isatty()
        self._bar = tqdm(initial=first_step, total=steps, unit="step", dynamic_ncols=True, disable=not self._live)
        self._start = self._said = time.perf_counter()
        self._phase = ""

    def see(self, report: Report) -> None:
        done = report.moment.step + 1 - self._first
        elapsed = time.perf_counter() - self._start
        speed = done * self._global_batch / elapsed
        figures = " ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in report.losses.items())
        if self._live:
            self._bar.set_description(report.moment.phase, refresh=False)
            self._bar.set_postfix_str(f"{speed:.0f} img/s, {figures}", refresh=False)
            self._bar.update(1)
            return
        changed = report.moment.phase != self._phase
        if changed or time.perf_counter() - self._said >= self._SECONDS or report.moment.step + 1 == self._steps:
            self._phase, self._said = report.moment.phase, time.perf_counter()
            left = elapsed / done * (self._steps - self._first - done)
            print(
                f"{report.moment.phase}: step {report.moment.step + 1}/{self._steps}, {speed:.0f} img/s, "
                f"{left / 60:.1f} min left, {figures}",
                flush=True,
            )

    def rewind(self, step: int) -> None:
        self._first, self._start = step, time.perf_counter()
        self._bar.n = self._bar.initial = step

    def close(self) -> None:
        self._bar.close()


class Pictures:
    """Grids of fixed faces at fixed steps, as PNG and in TensorBoard."""

    def __init__(self, grid: PictureGrid, network: nn.Module, folder: Path, every: int, board: TensorBoard) -> None:
        self._grid, self._network, self._folder, self._every, self._board = grid, network, folder, every, board

    def see(self, report: Report) -> None:
        step = report.moment.step
        if (self._every and (step + 1) % self._every == 0) or report.moment.ends_phase:
            picture = self._grid.draw(self._network, self._folder / f"step-{step + 1:08d}.png")
            self._board.add_picture(picture, step)

    def rewind(self, step: int) -> None:
        """The grids of steps that are run again are drawn again."""

    def close(self) -> None:
        pass
