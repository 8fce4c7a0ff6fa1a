"""Step speed and memory against the best hand-written loop of the same networks, in turn.

Three things at faces 160, full width, one process, bf16: the phase-3 update of glci-dist on a batch
that lies ready; the same update written by hand in plain torch; and a whole ``glci train`` with its
data, heartbeat and callbacks. Rounds alternate, so that the machine's noise meets all alike.

    python -m benchmarks.bench_step --batches 8 16 --out benchmarks/results/step.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import hardware, render_shards
from glci_dist import compose
from glci_dist.cluster.world import joined
from glci_dist.config import Config
from glci_dist.models.batch_norm import BatchNorm2d
from glci_dist.models.build import build_completion, build_discriminators
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.gan_step import DeviceBatch, GanTrainStep
from glci_dist.training.phases import Schedule, StepPlan
from glci_dist.training.setup import build_gan_step, prepare


def configuration(batch: int, *extra: str) -> Config:
    """Faces 160, recipe modern with two terms alone and Adam, in phase 3 from the first step on."""
    return compose.load(
        [
            "experiment=faces160",
            "data.shards=unused",
            f"global_batch={batch}",
            "phases.coarse.steps=0",
            "phases.completion.steps=0",
            "phases.discriminator.steps=0",
            "phases.joint.steps=1000000",
            "phases.joint.discriminator_every=1",
            "losses.feature_matching=0",
            "phases.joint.balance=0",
            "optimizers.completion.kind=adam",
            *extra,
        ]
    )


def random_batch(config: Config) -> DeviceBatch:
    """Photos of noise; what they show does not change the work."""
    size, count = config.data.size, config.global_batch
    masks = torch.zeros(count, 1, size, size)
    masks[:, :, 40:112, 30:100] = 1
    corners = torch.full((count, 2), 24, dtype=torch.int32)
    return DeviceBatch(
        torch.rand(count, size, size, 3).permute(0, 3, 1, 2),
        masks,
        corners,
        corners + 8,
        range(count),
        config.holes.patch,
    )


class HandWritten:
    """The phase-3 update as plain torch would have it: two fused Adams, autocast, channels last."""

    def __init__(self, config: Config) -> None:
        self._patch = config.holes.patch
        self._completion = with_torch_batch_norm(build_completion(config))
        self._discriminators = with_torch_batch_norm(build_discriminators(config))
        self._completion_adam = torch.optim.Adam(self._completion.parameters(), 2e-4, fused=True)
        self._discriminator_adam = torch.optim.Adam(self._discriminators.parameters(), 1e-4, fused=True)

    def update(self, batch: DeviceBatch, plan: StepPlan) -> None:
        photos, masks = batch.photos, batch.masks
        with torch.autocast("cpu", torch.bfloat16):
            outputs = self._completion(photos, masks)
            completed = torch.lerp(photos, outputs, masks.expand_as(photos))
            fake = completed.detach()
            real_logits, fake_logits = self._discriminators(
                (photos, self._crop(photos, batch.real_patches)), (fake, self._crop(fake, batch.fake_patches))
            )
            loss = (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()) / 2
        loss.backward()
        self._discriminator_adam.step()
        self._discriminator_adam.zero_grad(set_to_none=True)
        self._discriminators.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            (logits,) = self._discriminators((completed, self._crop(completed, batch.fake_patches)))
            errors = ((outputs - photos).abs() * masks).sum((1, 2, 3)) / (3 * masks.sum((1, 2, 3)))
            loss = errors.mean() + plan.alpha * F.softplus(-logits).mean()
        loss.backward()
        self._discriminators.requires_grad_(True)
        self._completion_adam.step()
        self._completion_adam.zero_grad(set_to_none=True)

    def _crop(self, images: Tensor, corners: Tensor) -> Tensor:
        side = self._patch
        patches = [image[:, y : y + side, x : x + side] for image, (x, y) in zip(images, corners.tolist(), strict=True)]
        return torch.stack(patches).contiguous(memory_format=torch.channels_last)


def with_torch_batch_norm(network: nn.Module) -> nn.Module:
    """The same network with torch's own batch norm in place of ours."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, BatchNorm2d):
                setattr(module, name, nn.BatchNorm2d(child.num_features))
    return network


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_updates(batch: int, rounds: int, steps: int) -> dict[str, float]:
    """Seconds a step of our update and of the hand-written one, in turn in this process."""
    config = configuration(batch)
    with joined(config.engine) as world:
        gan, hand = build_gan_step(config, world), HandWritten(config)
        data, plan = random_batch(config), Schedule(config.phases).at(0)
        times: dict[str, list[float]] = {"ours": [], "hand": []}
        for turn in range(rounds + 1):
            for name, update in (("ours", gan.update), ("hand", hand.update)):
                start = time.perf_counter()
                for _ in range(steps):
                    update(data, plan)
                if turn:
                    times[name].append((time.perf_counter() - start) / steps)
    ours, theirs = (statistics.median(times[name]) for name in ("ours", "hand"))
    paired = statistics.median(b / a for a, b in zip(times["ours"], times["hand"], strict=True))
    return {"update_s": ours, "hand_written_s": theirs, "speed_ratio": paired}


def measure_peak(batch: int, which: str) -> dict[str, float]:
    """This process's peak memory after a few steps of one of the two."""
    config = configuration(batch)
    with joined(config.engine) as world:
        data, plan = random_batch(config), Schedule(config.phases).at(0)
        update: Callable[[DeviceBatch, StepPlan], object]
        update = build_gan_step(config, world).update if which == "ours" else HandWritten(config).update
        for _ in range(3):
            update(data, plan)
        return {f"{which}_peak_gib": peak_gib()}


class BareInTurn(Callback):
    """A callback that runs as many bare updates as the run did steps, and times both in turn."""

    def __init__(self, gan: GanTrainStep, data: DeviceBatch, steps: int) -> None:
        self._gan, self._data, self._steps = gan, data, steps
        self._count = 0
        self._start: float | None = None
        self.ratios: list[float] = []
        self.trained: list[float] = []
        self.worker_mib = {"rss": 0.0, "pss": 0.0}

    def after_step(self, done: TrainedStep, control: Control) -> None:
        report = done.report
        self._count += 1
        if self._count % self._steps or report.plan.ends_phase:
            return
        now = time.perf_counter()
        for worker in multiprocessing.active_children():
            memory = psutil.Process(worker.pid).memory_full_info()
            for kind in self.worker_mib:
                self.worker_mib[kind] = max(self.worker_mib[kind], getattr(memory, kind) / 2**20)
        trained = None if self._start is None else now - self._start
        for _ in range(self._steps):
            self._gan.update(self._data, report.plan)
        self._start = time.perf_counter()
        if trained is not None:
            self.ratios.append((self._start - now) / trained)
            self.trained.append(trained / self._steps)

    def on_rewind(self, step: int) -> None:
        raise AssertionError("nothing rolls back here")


def measure_train(batch: int, rounds: int, steps: int, shards: str) -> dict[str, float]:
    """A whole run's steps (data, heartbeat, callbacks) against the bare update, in turn."""
    with tempfile.TemporaryDirectory() as runs:
        config = configuration(
            batch,
            f"data.shards={shards}",
            f"runs={runs}",
            "monitor.pictures_every=0",
            # No more than this is decoded while the bare updates run.
            "data.prefetch=1",
            f"phases.joint.steps={(rounds + 1) * steps}",
        )
        with joined(config.engine) as world:
            trainer = prepare(config, world)
            bare = BareInTurn(trainer.step.gan, random_batch(config), steps)
            trainer.callbacks.all.append(bare)
            trainer.run()
            trainer.close()
    return {
        "train_s": statistics.median(bare.trained),
        "train_ratio": statistics.median(bare.ratios),
        "train_peak_gib": peak_gib(),
        "worker_rss_mib": bare.worker_mib["rss"],
        "worker_pss_mib": bare.worker_mib["pss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of each in a round")
    parser.add_argument("--shards", default=None, help="shards for the whole run (default: rendered faces)")
    parser.add_argument("--out", type=Path, default=None, help="write the figures as JSON")
    parser.add_argument("--only", choices=["updates", "train", "ours", "hand"], help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.only:
        print(json.dumps(measure(parsed.only, parsed.batches[0], parsed.rounds, parsed.steps, parsed.shards)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        shards = parsed.shards or render_shards(Path(folder))
        for batch in parsed.batches:
            result: dict[str, float] = {"batch": batch}
            for only in ("updates", "train", "ours", "hand"):
                result |= in_own_process(only, batch, parsed.rounds, parsed.steps, shards)
            result["peak_ratio"] = result["ours_peak_gib"] / result["hand_peak_gib"]
            result["train_peak_ratio"] = result["train_peak_gib"] / result["hand_peak_gib"]
            results.append(result)
            print(json.dumps(result, indent=1), flush=True)
    if parsed.out:
        parsed.out.parent.mkdir(parents=True, exist_ok=True)
        parsed.out.write_text(json.dumps({"hardware": hardware(), "results": results}, indent=1) + "\n")


def measure(only: str, batch: int, rounds: int, steps: int, shards: str) -> dict[str, float]:
    if only == "updates":
        return measure_updates(batch, rounds, steps)
    if only == "train":
        return measure_train(batch, rounds, steps, shards)
    return measure_peak(batch, only)


def in_own_process(only: str, batch: int, rounds: int, steps: int, shards: str) -> dict[str, float]:
    """One measurement in a process of its own: DeepSpeed starts once a process, and peaks must not mix."""
    options = {"--batches": batch, "--rounds": rounds, "--steps": steps, "--shards": shards, "--only": only}
    words = [str(word) for pair in options.items() for word in pair]
    run = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
