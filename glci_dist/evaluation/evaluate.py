"""Completes the same photos with the same holes by several methods, and measures the composites."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from glci_dist.cluster import collectives
from glci_dist.cluster.world import World
from glci_dist.data.masks import crop_patches
from glci_dist.errors import UserError
from glci_dist.evaluation.baselines import CompletionMethod
from glci_dist.evaluation.discriminative import SCORES, discriminative_scores, why_left_out
from glci_dist.evaluation.feature_metrics import WHOLE_PHOTO, FeatureMetric, Features
from glci_dist.evaluation.metrics import composite, jumps_across_edge, photo_metrics, to_uint8
from glci_dist.evaluation.protocol import HoleProtocol
from glci_dist.evaluation.result import Result

Photos = Sequence[tuple[str, np.ndarray]]
"""(key, uint8 (size, size, 3)) of each photo; its index determines its hole."""


@dataclass(frozen=True)
class CompletedSample:
    """One photo completed by every method; all pictures uint8 (H, W, 3)."""

    key: str
    photo: np.ndarray
    hole: np.ndarray
    """The mask, bool (H, W)."""
    outputs: Mapping[str, np.ndarray]
    """Each method's raw output, also outside the hole."""
    completed: Mapping[str, np.ndarray]
    """Each method's composite."""


@dataclass(frozen=True)
class _Batch:
    keys: tuple[str, ...]
    photos: Tensor
    """float32 (B, 3, H, W) in [0, 1]"""
    blanked: Tensor
    """uint8 (B, H, W, 3), black in the hole"""
    masks: Tensor
    patches: Tensor
    """int32 (B, 2): left, top of the hole's neighbourhood"""
    patch: int
    """Side of the neighbourhood, px"""


@dataclass
class _Measurements:
    """What was measured on the photos of a batch."""

    keys: tuple[str, ...]
    areas: np.ndarray
    """Shares of the photos that are hole."""
    per_photo: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """By method and metric."""
    features: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Of the composites, by method and metric."""
    true: dict[str, np.ndarray] = field(default_factory=dict)
    """Features of the photos themselves, by metric."""
    denominators: dict[str, np.ndarray] = field(default_factory=dict)
    """Of metrics that are ratios of two sums."""


def evaluate(
    methods: Mapping[str, CompletionMethod],
    photos: Photos,
    protocol: HoleProtocol,
    *,
    feature_metrics: Sequence[FeatureMetric] = (),
    baselines: Collection[str] = (),
    batch: int = 32,
    replicates: int = 200,
    world: World | None = None,
    progress: bool = False,
) -> Result | None:
    """Complete every photo by every method and measure the composites; the result on rank 0, None on the others.

    Methods get photos that are black in the hole, so the original cannot leak. Methods named in ``baselines`` are not
    measured by feature_metrics that are too expensive for them. The ranks of ``world`` (None: this process alone) take
    whole batches in turn, so that results do not depend on the number of ranks. Raises UserError, on every rank, where
    there are no photos, and for a completion that is not finite.
    """
    if not len(photos):
        raise UserError("there are no photos to evaluate on; name shards that hold some")
    collectives.mark_progress("the photos of an evaluation", unbounded=True)
    rank, size = (world.rank, world.size) if world is not None else (0, 1)
    starts = range(0, len(photos), batch)
    found: dict[int, _Measurements] = {}
    with (
        nullcontext() if world is None else raised_on_all_ranks(world),
        tqdm(total=len(photos), desc="evaluate", unit="photo", disable=not progress or rank > 0) as bar,
    ):
        for start in starts[rank::size]:
            part = _load_batch(photos, protocol, range(start, min(start + batch, len(photos))))
            found[start] = _measure(methods, part, feature_metrics, baselines)
            # Assuming that the other ranks are about as far.
            bar.update(min(size * batch, len(photos) - bar.n))
    parts = [found] if world is None else world.gather_objects(found)
    result = None
    with nullcontext() if world is None else raised_on_all_ranks(world):
        if parts:
            # Rank 0 works alone; the others wait without bound at the end of the block.
            collectives.mark_progress("merging an evaluation", unbounded=True)
            found = {start: findings for part in parts for start, findings in part.items()}
            result = _merge([found[start] for start in starts], methods, protocol, replicates)
    return result


@contextmanager
def raised_on_all_ranks(world: World) -> Iterator[None]:
    """A ``UserError`` of some ranks inside of it is raised on every rank at its end."""
    problem = None
    try:
        yield
    except UserError as error:
        problem = str(error)
    world.raise_on_all_ranks(problem)


@torch.no_grad()
def complete_samples(
    methods: Mapping[str, CompletionMethod], photos: Photos, protocol: HoleProtocol, *, count: int
) -> list[CompletedSample]:
    """The first ``count`` photos, with the same holes as in ``evaluate``, completed by every method."""
    part = _load_batch(photos, protocol, range(min(count, len(photos))))
    outputs = {method: _complete(method, complete, part) for method, complete in methods.items()}
    pictures = {method: to_uint8(output) for method, output in outputs.items()}
    completed = {method: to_uint8(composite(output, part.photos, part.masks)) for method, output in outputs.items()}
    originals = to_uint8(part.photos)
    return [
        CompletedSample(
            key=key,
            photo=originals[number],
            hole=part.masks[number, 0].numpy() > 0.5,
            outputs={method: images[number] for method, images in pictures.items()},
            completed={method: images[number] for method, images in completed.items()},
        )
        for number, key in enumerate(part.keys)
    ]


def _load_batch(photos: Photos, protocol: HoleProtocol, numbers: range) -> _Batch:
    keys, arrays = zip(*(photos[number] for number in numbers), strict=True)
    pixels = torch.from_numpy(np.stack(arrays))
    masks = protocol.masks(numbers)
    return _Batch(
        keys=keys,
        photos=pixels.permute(0, 3, 1, 2).float() / 255,
        blanked=pixels * (masks.permute(0, 2, 3, 1) < 0.5),
        masks=masks,
        patches=protocol.patches(numbers),
        patch=protocol.patch,
    )


@torch.no_grad()
def _measure(
    methods: Mapping[str, CompletionMethod],
    part: _Batch,
    feature_metrics: Sequence[FeatureMetric],
    baselines: Collection[str],
) -> _Measurements:
    found = _Measurements(part.keys, part.masks.mean((1, 2, 3)).double().numpy())
    composites = {
        method: composite(_complete(method, complete, part), part.photos, part.masks)
        for method, complete in methods.items()
    }
    found.denominators["seam"] = jumps_across_edge(part.photos, part.masks).double().numpy()
    for method, completed in composites.items():
        seam = jumps_across_edge(completed, part.masks).double()
        found.per_photo[method] = photo_metrics(completed, part.photos, part.masks) | {"seam": seam.numpy()}
        found.features[method] = {}
    for metric in feature_metrics:
        for region in metric.regions:
            photos = _region(part.photos, part, region)
            true = metric.extract(photos, photos)
            _store_features(found.true, metric, region, true)
            for method, completed in composites.items():
                if method in baselines and not metric.for_baselines:
                    continue
                seen = metric.extract(_region(completed, part, region), photos)
                _store_features(found.features[method], metric, region, seen)
                if metric.distance_name is not None:
                    distances = metric.compare(seen, true).double().numpy()
                    found.per_photo[method][metric.distance_name + region] = distances
    return found


def _region(pictures: Tensor, part: _Batch, region: str) -> Tensor:
    return pictures if region == WHOLE_PHOTO else crop_patches(pictures, part.patches, part.patch)


def _store_features(features: dict[str, np.ndarray], metric: FeatureMetric, region: str, seen: Features) -> None:
    if metric.frechet_name is not None:
        assert seen.pooled is not None
        features[metric.frechet_name + region] = seen.pooled.float().numpy()


def _merge(
    parts: Sequence[_Measurements], methods: Mapping[str, CompletionMethod], protocol: HoleProtocol, replicates: int
) -> Result:
    """The result over all photos, in their order."""

    def join(pieces: Iterator[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        gathered = list(pieces)
        return {name: np.concatenate([each[name] for each in gathered]) for name in gathered[0]}

    keys = tuple(key for part in parts for key in part.keys)
    per_photo = {method: join(part.per_photo[method] for part in parts) for method in methods}
    features = {method: join(part.features[method] for part in parts) for method in methods}
    true = join(part.true for part in parts)
    notes = _add_discriminative_scores(per_photo, features, true)
    return Result(
        protocol=protocol,
        holes_sha256=protocol.digest(len(keys)),
        keys=keys,
        hole_shares=np.concatenate([part.areas for part in parts]),
        per_photo=per_photo,
        features=features,
        photo_features=true,
        denominators=join(part.denominators for part in parts),
        replicates=replicates,
        notes=notes,
    )


def _add_discriminative_scores(
    per_photo: Mapping[str, dict[str, np.ndarray]],
    features: Mapping[str, Mapping[str, np.ndarray]],
    true: Mapping[str, np.ndarray],
) -> tuple[str, ...]:
    """Add U-IDS and P-IDS to every method that has features for them; returns why they are left out, if they are."""
    notes = []
    for name, scores in SCORES.items():
        if name not in true:
            continue
        problem = why_left_out(name, *true[name].shape)
        if problem:
            notes.append(problem)
            continue
        for method, found in features.items():
            if name in found:
                per_photo[method] |= zip(scores, discriminative_scores(found[name], true[name]), strict=True)
    return tuple(notes)


def _complete(method: str, complete: CompletionMethod, part: _Batch) -> Tensor:
    output = complete(part.blanked, part.masks).float().cpu()
    if output.shape != part.photos.shape:
        raise ValueError(f"{method} returned {tuple(output.shape)} for {tuple(part.photos.shape)}")
    finite = output.isfinite().all(dim=(1, 2, 3))
    if not bool(finite.all()):
        key = part.keys[int(finite.logical_not().nonzero()[0])]
        raise UserError(f"{method} completes {key} with values that are not finite; evaluate an earlier checkpoint")
    return output.clamp(0, 1)
