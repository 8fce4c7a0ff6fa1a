"""`glci evaluate`: a run's completions beside the baselines', on held-out shards."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from glci_dist import compose
from glci_dist.checkpoints import reading
from glci_dist.checkpoints.manifest import Unreadable
from glci_dist.cluster.world import choose_device
from glci_dist.config import Config
from glci_dist.data.index import load_index
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from glci_dist.evaluation.baselines import Complete, mean_colour, telea
from glci_dist.evaluation.evaluate import Result, evaluate, take_samples
from glci_dist.evaluation.protocol import box_protocol, evaluation_photos
from glci_dist.evaluation.report import write_report
from glci_dist.models.build import build_completion
from glci_dist.models.completion import fill_colour
from glci_dist.runs.folder import RunFolder

_SAMPLES = 8


def evaluate_run(
    folder: Path, shards: str, *, photos: int | None = None, batch: int = 32, out: Path | None = None
) -> Result:
    """Measure the newest checkpoint of a run on the first ``photos`` (default all) of ``shards``.

    Writes the report into ``out`` (default ``folder``/evaluation) and prints the table. Raises
    ``UserError`` for a folder without a checkpoint and for shards that cannot be read.
    """
    if (photos is not None and photos < 1) or batch < 1:
        raise UserError(f"--photos={photos} --batch={batch}: both must be at least 1")
    config, network, step = load_completion(folder)
    index = load_index(shards)
    store = ShardStore(index, config.data.cache)
    total = min(photos or index.total, index.total)
    protocol = box_protocol(config.data.size, config.holes)

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        pairs = evaluation_photos(index, store, size=config.data.size, short_edge=config.data.short_edge[0])
        return islice(pairs, total)

    name = f"{config.name} (step {step})"
    methods: dict[str, Complete] = {
        "mean colour": mean_colour(fill_colour(network).flatten().tolist()),
        "OpenCV Telea": telea,
        name: _complete_with(network, torch.device(choose_device("auto"))),
    }
    result = evaluate(methods, stream(), protocol, batch=batch, total=total, progress=True)
    samples = take_samples(methods, stream(), protocol, count=_SAMPLES)
    target = out or folder / "evaluation"
    picture = write_report(result, samples, target, network=name, beside="OpenCV Telea")
    print(result.table(), end="")
    print(f"written: {target / 'evaluation.json'}, {target / 'evaluation.md'}, {picture}")
    return result


def load_completion(folder: Path) -> tuple[Config, nn.Module, int]:
    """A run's configuration, its completion network (the moving average, if it has one), and its step."""
    run = RunFolder(folder)
    config = compose.read(run.config_file)

    def tell(path: Path, problem: str) -> None:
        print(f"{path} is damaged ({problem}): an older one is taken")

    try:
        checkpoint = reading.newest(run.checkpoints, damaged=tell)
    except Unreadable as error:
        raise UserError(f"{error}: mend that, and try again") from error
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint yet: one is written at the end of each phase")
    network = build_completion(config)
    reading.load_networks(checkpoint, {"average" if config.engine.ema else "completion": network})
    return config, network.eval(), checkpoint.step


def _complete_with(network: nn.Module, device: torch.device) -> Complete:
    network.to(device)

    def complete(photos: Tensor, masks: Tensor) -> Tensor:
        images = photos.to(device).permute(0, 3, 1, 2).float().div(255)
        return network(images, masks.to(device))

    return complete
