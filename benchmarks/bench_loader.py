"""Photos/s of one loader worker, against a bare simplejpeg loop over the same bytes and stock webdataset.

One epoch of each in turn, round after round, so that the machine's noise meets all alike:

- ``bare``: ``simplejpeg.decode_jpeg`` of each photo's bytes, which lie in memory; - ``glci``: read by offset,
decoded, mirrored, with holes and patches, delivered to the main process as batches by a ``make_loader`` of
one worker; - ``webdataset``: a stock pipeline of one DataLoader worker: shuffle(1000), Pillow decode,
batched.

A figure is photos divided by the time from the first batches to the last, as start-up is paid once a run.
The worker has a core of its own, as it has beside a training process; some kernels pack both onto one.

    python -m benchmarks.bench_loader --shards SHARDS --out benchmarks/results/loader.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import simplejpeg
import torch
import webdataset

from benchmarks.common import hardware, render_shards
from glci_dist.config import CacheConfig, DataConfig, HolesConfig, OrderConfig
from glci_dist.data.index import Index, load_index
from glci_dist.data.loader import make_loader
from glci_dist.data.order import Order
from glci_dist.data.store import ShardStore

Rates = dict[str, list[float]]

CORES = sorted(os.sched_getaffinity(0))


def bare(encoded: list[bytes]) -> float:
    """Photos/s of the decoder alone."""
    start = time.perf_counter()
    for photo in encoded:
        simplejpeg.decode_jpeg(photo)
    return len(encoded) / (time.perf_counter() - start)


def glci(index: Index, *, size: int, batch: int, memory: dict[str, float]) -> float:
    """Photos/s of one worker of ours; ``memory`` gets the worker's greatest RSS and PSS, MiB."""
    data = DataConfig(shards=index.root, size=size, short_edge=[size, size], workers=1)
    holes = HolesConfig(min_side=size // 4, max_side=size // 2, patch=size // 2)
    steps = range(2 * (index.total // batch))
    loader = make_loader(index, data, holes, seed=0, global_batch=batch, rank=0, world_size=1, steps=steps)
    return photos_per_second((len(photos.keys) for photos in loader), batches=len(steps), memory=memory)


def stock(index: Index, *, batch: int) -> float:
    """Photos/s of one worker of webdataset with its own Pillow decoder."""
    urls = [f"{index.root}/{shard.name}" for shard in index.shards]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(1000)
        .decode("rgb8")
        .to_tuple("jpg")
        .batched(batch, partial=False)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4)
    return photos_per_second((len(photos) for (photos,) in loader), batches=index.total // batch)


def photos_per_second(batches_of: Iterator[int], *, batches: int, memory: dict[str, float] | None = None) -> float:
    """The rate from the end of the first tenth, when all is warm, to the last batch."""
    warm, photos, start = max(1, batches // 10), 0, 0.0
    for number, count in enumerate(batches_of, 1):
        if number == 1:
            give_the_worker_a_core()
        if number > warm:
            photos += count
        if number == warm:
            start = time.perf_counter()
        if memory is not None and number == batches // 2:
            note_memory(memory)
    return photos / (time.perf_counter() - start)


def give_the_worker_a_core() -> None:
    """Put the worker on the last core, away from this process, which stands for the training on the others."""
    if len(CORES) > 1:
        psutil.Process().cpu_affinity(CORES[:-1])
        for process in multiprocessing.active_children():
            psutil.Process(process.pid).cpu_affinity(CORES[-1:])


def note_memory(memory: dict[str, float]) -> None:
    """The greatest memory of this process's loader workers so far, MiB."""
    for process in multiprocessing.active_children():
        found = psutil.Process(process.pid).memory_full_info()
        for name, value in (("rss", found.rss), ("pss", found.pss), ("uss", found.uss)):
            memory[name] = max(memory.get(name, 0.0), value / 2**20)


def measure(index: Index, *, batch: int, rounds: int) -> dict[str, Any]:
    """Medians and ratios over ``rounds`` rounds of the three in turn."""
    store = ShardStore(index, CacheConfig())
    encoded = [
        store.sample(shard, number)[1] for shard, found in enumerate(index.shards) for number in range(found.samples)
    ]
    height, width = simplejpeg.decode_jpeg_header(encoded[0])[:2]
    memory: dict[str, float] = {}
    runs: dict[str, Callable[[], float]] = {
        "bare": lambda: bare(encoded),
        "glci": lambda: glci(index, size=min(height, width), batch=batch, memory=memory),
        "webdataset": lambda: stock(index, batch=batch),
    }
    rates: Rates = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(run())
            print(f"{name:12s} {rates[name][-1]:8.0f} photos/s", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "photos": index.total,
        "size": min(height, width),
        "batch": batch,
        "photos_per_second": rates,
        "median": medians,
        "to_bare": medians["glci"] / medians["bare"],
        "to_webdataset": medians["glci"] / medians["webdataset"],
        "worker_mib": memory,
    }


def first_batch_at_scale() -> dict[str, float]:
    """Seconds until the first batch's samples are known, for a billion samples in 100,000 shards."""
    counts = np.full(100_000, 10_000)
    start = time.perf_counter()
    order = Order(counts, seed=0, global_batch=4096, config=OrderConfig(lanes=64))
    order.samples(0, range(4096))
    return {"samples": float(counts.sum()), "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", help="folder of shards; without it rendered faces of 192 px are made")
    parser.add_argument("--batch", type=int, default=96, help="photos in a batch (default 96, as in the paper)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the three in turn (default 5)")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    arguments = parser.parse_args()
    # One core each for the worker and for who consumes: the training process would be busy elsewhere.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
        shards = arguments.shards or render_shards(Path(folder), photos=2000)
        result = measure(load_index(shards), batch=arguments.batch, rounds=arguments.rounds)
    result = {**result, "order_at_scale": first_batch_at_scale(), "hardware": {**hardware(), "cores": len(CORES)}}
    print(f"glci / bare simplejpeg    {result['to_bare']:.3f}   (goal: at least 0.8)")
    print(f"glci / stock webdataset   {result['to_webdataset']:.2f}    (goal: at least 2.3)")
    print("worker memory, MiB        " + ", ".join(f"{k} {v:.0f}" for k, v in result["worker_mib"].items()))
    print(f"order of 1e9 samples      first batch in {result['order_at_scale']['seconds']:.2f} s")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
