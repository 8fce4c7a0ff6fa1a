"""An evaluation's result: metrics per photo, their means with confidence intervals, and the protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from glci_dist.data.processes import available_processes
from glci_dist.evaluation.bootstrap import interval, resamples
from glci_dist.evaluation.distances import frechet
from glci_dist.evaluation.protocol import HoleProtocol

FORMAT = "glci-evaluation-2"


@dataclass(frozen=True)
class MetricFormat:
    """How a metric is printed."""

    title: str
    decimals: int


METRICS = {
    "hole_l1_x100": MetricFormat("l1 in the hole x100 ↓", 2),
    "psnr_db": MetricFormat("PSNR dB ↑", 2),
    "ssim": MetricFormat("SSIM ↑", 4),
    "seam": MetricFormat("seam: jump across the hole's edge, composite over photo (1 is perfect)", 3),
    "perceptual": MetricFormat("perceptual distance (EfficientNet-Lite0) ↓", 4),
    "perceptual_hole": MetricFormat("the same around the hole ↓", 4),
    "frechet": MetricFormat("Frechet distance (EfficientNet-Lite0) ↓", 3),
    "frechet_hole": MetricFormat("the same around the hole ↓", 3),
    "u_ids": MetricFormat("U-IDS (EfficientNet-Lite0; 0.5 is perfect) ↑", 4),
    "p_ids": MetricFormat("P-IDS (EfficientNet-Lite0) ↑", 4),
    "identity": MetricFormat("identity distance (dlib; 0.6: another person) ↓", 3),
    "lpips": MetricFormat("LPIPS (AlexNet) ↓", 4),
    "lpips_hole": MetricFormat("the same around the hole ↓", 4),
    "fid": MetricFormat("FID (InceptionV3) ↓", 3),
    "fid_hole": MetricFormat("the same around the hole ↓", 3),
    "inception_u_ids": MetricFormat("U-IDS (InceptionV3; 0.5 is perfect) ↑", 4),
    "inception_p_ids": MetricFormat("P-IDS (InceptionV3) ↑", 4),
}
"""Every metric that an evaluation may have, in the order of the table."""

_MOST_THREADS = 8
"""For resampling features: each thread holds a few copies of them, in float64."""

_SIZES = ((0.0, 0.1, "under 10%"), (0.1, 0.2, "10 to 20%"), (0.2, 0.3, "20 to 30%"), (0.3, 1.1, "30% or more"))
"""Classes of holes by their share of the photo: lower bound, upper bound, name."""


@dataclass(frozen=True)
class Summary:
    """One metric over all photos, with its 95% interval (None: no interval)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Result:
    """What was measured of each method, per photo."""

    protocol: HoleProtocol
    holes_sha256: str
    keys: tuple[str, ...]
    """"<shard>/<key>" of each of N photos."""
    hole_shares: NDArray[np.float64]
    """Share of the photo that is hole, (N,)."""
    per_photo: Mapping[str, Mapping[str, np.ndarray]]
    """By method and metric: one value per photo (N,), nan where it has none."""
    features: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    """By method and metric that compares distributions: features of the composites, (N, D)."""
    photo_features: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By metric: features of the photos, (N, D)."""
    denominators: Mapping[str, np.ndarray] = field(default_factory=dict)
    """By metric of ``per_photo`` that is a ratio of two sums over photos: the terms of the second, (N,)."""
    replicates: int = 200
    """Bootstrap resamples for an interval; 0: no intervals."""
    notes: tuple[str, ...] = ()
    """What a reader must know, such as why a metric is left out."""
    _resampled: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @property
    def photos(self) -> int:
        """The number of photos."""
        return len(self.keys)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.per_photo)

    def names(self, method: str) -> list[str]:
        """The metrics that a method has, in the table's order."""
        return [name for name in METRICS if name in self.per_photo[method] or name in self.features.get(method, {})]

    def value(self, method: str, name: str, rows: NDArray[np.bool_] | None = None) -> float:
        """A method's metric over all photos, or over those of ``rows`` (N,)."""
        rows = np.ones(self.photos, bool) if rows is None else rows
        if name in self.per_photo[method]:
            values, denominators = self.per_photo[method][name][rows], self._denominators(name)[rows]
            known = np.isfinite(values)
            total = denominators[known].sum()
            return float(values[known].sum() / total) if total else float("nan")
        if rows.sum() < 2:
            return float("nan")
        return frechet(
            torch.from_numpy(self.features[method][name][rows]), torch.from_numpy(self.photo_features[name][rows])
        )

    def summary(self, method: str, name: str) -> Summary:
        """A method's metric with its interval."""
        value = self.value(method, name)
        if not self.replicates or self.photos < 2 or not np.isfinite(value):
            return Summary(value)
        return _with_interval(value, self._resample(method, name))

    def ratio(self, method: str, against: str, name: str) -> Summary:
        """The ratio of two methods' metric, computed per resample, so that the photos' own difficulty cancels."""
        below = self.value(against, name)
        value = self.value(method, name) / below if below else float("nan")
        if not self.replicates or self.photos < 2 or not np.isfinite(value):
            return Summary(value)
        with np.errstate(divide="ignore", invalid="ignore"):
            # A share of few photos may be 0 in a resample.
            return _with_interval(value, self._resample(method, name) / self._resample(against, name))

    def resample(self, *, progress: bool) -> None:
        """Compute all resamples now, with a progress bar: those of distances between distributions are slow."""
        pairs = [(method, name) for method in self.methods for name in self.names(method)]
        slow = [pair for pair in pairs if pair[1] not in self.per_photo[pair[0]]] if self.replicates else []
        for method, name in tqdm(slow, desc="intervals", unit="figure", disable=not progress or not slow):
            if self.photos > 1:
                self._resample(method, name)

    def to_json(self) -> str:
        """The protocol and every metric of every method: over all photos, and by hole size."""
        return json.dumps(
            {
                "format": FORMAT,
                "protocol": asdict(self.protocol),
                "holes_sha256": self.holes_sha256,
                "photos": self.photos,
                "notes": self.notes,
                "interval": {"share": 0.95, "resamples": self.replicates},
                "methods": {
                    method: {
                        name: {key: _finite(figure) for key, figure in asdict(self.summary(method, name)).items()}
                        for name in self.names(method)
                    }
                    for method in self.methods
                },
                "by_hole_size": {
                    method: {
                        size: {"photos": int(rows.sum())}
                        | {name: _finite(self.value(method, name, rows)) for name in self.names(method)}
                        for size, rows in self._sizes()
                    }
                    for method in self.methods
                },
            },
            indent=2,
            allow_nan=False,
        )

    def table(self, networks: Sequence[str] = ()) -> str:
        """Markdown, one metric per row and one method per column; for ``networks`` also ratios to the first, and by
        hole size.
        """
        names = [name for name in METRICS if any(name in self.names(method) for method in self.methods)]
        rows = [["", *self.methods]]
        for name in names:
            cells = [
                _cell(self.summary(method, name), METRICS[name].decimals) if name in self.names(method) else ""
                for method in self.methods
            ]
            rows.append([METRICS[name].title, *cells])
        blocks = [_markdown(rows)]
        for other in networks[1:]:
            rows = [[f"{other} over {networks[0]}", "ratio"]]
            for name in self.names(other):
                rows.append([METRICS[name].title, _cell(self.ratio(other, networks[0], name), 3)])
            blocks.append(_markdown(rows))
        sizes = self._sizes()
        for network in networks if len(sizes) > 1 else ():
            rows = [[f"{network}, holes of", *(f"{size} of the photo ({int(held.sum())})" for size, held in sizes)]]
            for name in self.names(network):
                values = (self.value(network, name, held) for _, held in sizes)
                rows.append([METRICS[name].title, *(_cell(Summary(value), METRICS[name].decimals) for value in values)])
            blocks.append(_markdown(rows))
        blocks += [f"{note}\n" for note in self.notes]
        intervals = f"; in brackets: 95% intervals of {self.replicates} resamples" if self.replicates else ""
        remark = f"; {self.protocol.remark}" if self.protocol.remark else ""
        blocks.append(
            f"{self.photos} photos of {self.protocol.size} px; {self.protocol.title}, "
            f"seed {self.protocol.seed}, digest {self.holes_sha256[:12]}{intervals}{remark}\n"
        )
        return "\n".join(blocks)

    def _sizes(self) -> list[tuple[str, NDArray[np.bool_]]]:
        """The classes of hole sizes that occur, and which photos are in each."""
        found = [(name, (self.hole_shares >= low) & (self.hole_shares < high)) for low, high, name in _SIZES]
        return [(name, rows) for name, rows in found if rows.any()]

    def _denominators(self, name: str) -> NDArray[np.float64]:
        """What the sum of a metric's values is divided by the sum of, (N,): for a mean, ones."""
        return self.denominators[name] if name in self.denominators else np.ones(self.photos)

    def _resample(self, method: str, name: str) -> NDArray[np.float64]:
        """A metric's value in each resample; nan in one that has no photo for which it is known."""
        if (method, name) not in self._resampled:
            counts = resamples(self.photos, self.replicates)
            if name in self.per_photo[method]:
                values = self.per_photo[method][name]
                known = np.isfinite(values)
                sums, totals = counts[:, known] @ values[known], counts[:, known] @ self._denominators(name)[known]
                found = np.divide(sums, totals, out=np.full(len(counts), np.nan), where=totals > 0)
            else:
                one = torch.from_numpy(self.features[method][name])
                true = torch.from_numpy(self.photo_features[name])
                found = _in_threads(lambda each: frechet(one, true, torch.from_numpy(each)), counts)
            self._resampled[method, name] = found
        return self._resampled[method, name]


def _with_interval(value: float, resampled: NDArray[np.float64]) -> Summary:
    """No interval where the metric is unknown in some resample."""
    return Summary(value, *interval(resampled, value)) if np.isfinite(resampled).all() else Summary(value)


def _in_threads(function: Callable[[np.ndarray], float], tasks: NDArray[np.int64]) -> NDArray[np.float64]:
    """``function`` of each task, with one torch thread each: the decompositions are too small for more."""
    with ThreadPoolExecutor(
        min(available_processes(), _MOST_THREADS), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        found = np.array(list(pool.map(function, tasks)))
    # Threads that start later would inherit what the pool's threads set.
    torch.set_num_threads(torch.get_num_threads())
    return found


def brief(figures: Mapping[str, float]) -> str:
    """Metrics in one line, by their names."""
    return ", ".join(f"{name} {value:.{METRICS[name].decimals}f}" for name, value in figures.items())


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _cell(summary: Summary, decimals: int) -> str:
    if not np.isfinite(summary.value):
        return ""
    if summary.low is None:
        return f"{summary.value:.{decimals}f}"
    return f"{summary.value:.{decimals}f} ({summary.low:.{decimals}f} to {summary.high:.{decimals}f})"


def _markdown(rows: list[list[str]]) -> str:
    """An aligned table; the first row is its header, the first column is aligned to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *others in (rows[0], rule, *rows[1:]):
        aligned = [
            f"{first:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)),
        ]
        lines.append(f"| {' | '.join(aligned)} |")
    return "\n".join(lines) + "\n"
