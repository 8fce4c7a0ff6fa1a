"""What the benchmarks share: the machine's name, and shards to read."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from glci_dist.data.build import build_shards
from glci_dist.data.demo_faces import write_corpus
from glci_dist.data.plan import BuildOptions


def hardware() -> dict[str, object]:
    """What the figures were measured on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": model,
        # Kinds of one model differ by far in bf16.
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def render_shards(folder: Path, *, photos: int = 600, size: int = 192) -> str:
    """Shards of rendered faces under ``folder``; returns where they lie."""
    processes = len(os.sched_getaffinity(0))
    write_corpus(folder / "photos", photos=photos, seed=0, size=size, processes=processes)
    build_shards(folder / "photos", folder / "shards", BuildOptions(), processes=processes)
    return str(folder / "shards")
