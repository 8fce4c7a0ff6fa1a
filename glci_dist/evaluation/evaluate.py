"""Holds completions side by side over the same photos and the same holes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from glci_dist.errors import UserError
from glci_dist.evaluation.baselines import Complete
from glci_dist.evaluation.metrics import PhotoMetrics, composite, photo_metrics
from glci_dist.evaluation.protocol import Protocol

COLUMNS = {"hole_l1_x100": ("l1 in the hole x100 ↓", 2), "psnr_db": ("PSNR dB ↑", 2), "ssim": ("SSIM ↑", 4)}
"""Each metric's title in the table, and its decimals."""


@dataclass(frozen=True)
class Summary:
    """One metric over all photos."""

    mean: float
    standard_error: float | None
    """Of the mean over photos; None for a single photo, which has none."""


@dataclass(frozen=True)
class Result:
    """The figures of every method, and the frozen protocol that they were taken on."""

    protocol: Protocol
    holes_sha256: str
    photos: int
    keys: tuple[str, ...]
    """"<shard>/<key>" of each photo; not in the JSON."""
    per_photo: Mapping[str, PhotoMetrics]
    """Each method's metrics, a value a photo; not in the JSON."""

    def summary(self, method: str, metric: str) -> Summary:
        """Mean and standard error of a method's ``hole_l1_x100``, ``psnr_db`` or ``ssim``."""
        values: np.ndarray = getattr(self.per_photo[method], metric)
        if len(values) < 2:
            return Summary(mean=float(values.mean()), standard_error=None)
        return Summary(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))))

    def to_json(self) -> str:
        """The protocol and each method's means and standard errors."""
        methods = {
            method: {metric: asdict(self.summary(method, metric)) for metric in COLUMNS} for method in self.per_photo
        }
        document = {
            "protocol": asdict(self.protocol),
            "holes_sha256": self.holes_sha256,
            "photos": self.photos,
            "methods": methods,
        }
        return json.dumps(document, indent=2, allow_nan=False) + "\n"

    def table(self) -> str:
        """Aligned markdown, a method a row; under it the protocol in one line."""
        rows = [["method", *(title for title, _ in COLUMNS.values())]]
        for method in self.per_photo:
            means = (f"{self.summary(method, metric).mean:.{decimals}f}" for metric, (_, decimals) in COLUMNS.items())
            rows.append([method, *means])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines = [_line(row, widths) for row in (rows[0], rule, *rows[1:])]
        holes = self.protocol.holes
        lines += [
            "",
            f"{self.photos} photos of {self.protocol.size} px; protocol {self.protocol.name}, "
            f"seed {self.protocol.seed}, holes of {holes.min_side} to {holes.max_side} px, "
            f"digest {self.holes_sha256[:12]}",
        ]
        return "\n".join(lines) + "\n"


def _line(cells: list[str], widths: list[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    aligned = [f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]
    return f"| {' | '.join(aligned)} |"


@dataclass(frozen=True)
class Sample:
    """One photo as every method completed it; all pictures uint8 (H, W, 3)."""

    key: str
    photo: np.ndarray
    hole: np.ndarray
    """The mask, bool (H, W)."""
    outputs: Mapping[str, np.ndarray]
    """What each method returned, outside the hole too."""
    completed: Mapping[str, np.ndarray]
    """The composite of each method."""


@dataclass(frozen=True)
class _Batch:
    keys: tuple[str, ...]
    photos: Tensor
    """float32 (B, 3, H, W) in [0, 1]"""
    blanked: Tensor
    """uint8 (B, H, W, 3), black in the hole"""
    masks: Tensor


def evaluate(
    methods: Mapping[str, Complete],
    photos: Iterable[tuple[str, np.ndarray]],
    protocol: Protocol,
    *,
    batch: int = 64,
    total: int | None = None,
    progress: bool = False,
) -> Result:
    """Completes every photo by every method and measures the composites.

    ``photos`` are (key, uint8 (size, size, 3)) in the order that numbers them; ``total`` is their
    number where it is known, for the progress bar. A method is given photos that are black in the
    hole, so no completion can leak what was there.
    Raises UserError for no photos, and for a completion that is not finite.
    """
    keys: list[str] = []
    parts: dict[str, list[PhotoMetrics]] = {method: [] for method in methods}
    with tqdm(total=total, desc="evaluate", unit="photo", disable=not progress) as bar:
        for part in _batches(photos, protocol, batch):
            for method, complete in methods.items():
                output = _complete(method, complete, part)
                parts[method].append(photo_metrics(composite(output, part.photos, part.masks), part.photos, part.masks))
            keys += part.keys
            bar.update(len(part.keys))
    if not keys:
        raise UserError("there are no photos to evaluate on; name shards that hold some")
    return Result(
        protocol=protocol,
        holes_sha256=protocol.digest(len(keys)),
        photos=len(keys),
        keys=tuple(keys),
        per_photo={method: PhotoMetrics.joined(metrics) for method, metrics in parts.items()},
    )


def take_samples(
    methods: Mapping[str, Complete],
    photos: Iterable[tuple[str, np.ndarray]],
    protocol: Protocol,
    *,
    count: int,
) -> list[Sample]:
    """The first ``count`` photos with the holes that ``evaluate`` gives them, completed by every method."""
    samples = []
    for part in _batches(islice(photos, count), protocol, count):
        outputs = {method: _complete(method, complete, part) for method, complete in methods.items()}
        pictures = {method: to_uint8(output) for method, output in outputs.items()}
        completed = {method: to_uint8(composite(output, part.photos, part.masks)) for method, output in outputs.items()}
        originals = to_uint8(part.photos)
        for number, key in enumerate(part.keys):
            samples.append(
                Sample(
                    key=key,
                    photo=originals[number],
                    hole=part.masks[number, 0].numpy() > 0.5,
                    outputs={method: images[number] for method, images in pictures.items()},
                    completed={method: images[number] for method, images in completed.items()},
                )
            )
    return samples


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] to uint8 (B, H, W, 3), rounded to the nearest."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _batches(photos: Iterable[tuple[str, np.ndarray]], protocol: Protocol, batch: int) -> Iterator[_Batch]:
    first, remaining = 0, iter(photos)
    while pairs := list(islice(remaining, batch)):
        keys, arrays = zip(*pairs, strict=True)
        pixels = torch.from_numpy(np.stack(arrays))
        masks = protocol.masks(range(first, first + len(keys)))
        yield _Batch(
            keys=keys,
            photos=pixels.permute(0, 3, 1, 2).float() / 255,
            blanked=pixels * (masks.permute(0, 2, 3, 1) < 0.5),
            masks=masks,
        )
        first += len(keys)


def _complete(method: str, complete: Complete, part: _Batch) -> Tensor:
    with torch.no_grad():
        output = complete(part.blanked, part.masks).float().cpu()
    if output.shape != part.photos.shape:
        raise ValueError(f"{method} returned {tuple(output.shape)} for {tuple(part.photos.shape)}")
    finite = output.isfinite().all(dim=(1, 2, 3))
    if not bool(finite.all()):
        key = part.keys[int(finite.logical_not().nonzero()[0])]
        raise UserError(f"{method} completes {key} with values that are not finite; evaluate an earlier checkpoint")
    return output.clamp(0, 1)
