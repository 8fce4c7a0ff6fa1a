"""What a save costs the training, and how long a restart takes, at the paper's faces: 160 px, full width, Adam.

Windows of a few joint steps in turn, round after round, in one process: without a save, with one that training
waits for (``checkpoints.run_ahead=0``), and with one behind it. What a save costs is the time of its window beyond
that of the window without one.

On a GPU the training leaves the processors to others. Here it takes all of them, and what is written behind it is
taken from it; --spare-core keeps the last one for the saving, as such a machine would.

Then the state is resumed by the real command, which says where the time to its first step went.

    python -m benchmarks.bench_checkpoint --out benchmarks/results/checkpoint.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import hardware, render_shards
from glci_dist import compose
from glci_dist.checkpoints.saver import Saver, SaveResult
from glci_dist.cluster.world import joined
from glci_dist.config import CheckpointsConfig
from glci_dist.runs.events import FirstStepDone
from glci_dist.runs.journal import read_journal
from glci_dist.training.setup import prepare


def overrides(shards: str, runs: str, batch: int) -> list[str]:
    return [
        "experiment=faces160",
        "optimizers.completion.kind=adam",
        f"global_batch={batch}",
        f"data.shards={shards}",
        f"runs={runs}",
        "name=bench",
        "monitor.pictures_every=0",
        "phases.coarse.steps=0",
        "phases.completion.steps=0",
        "phases.discriminator.steps=0",
        "phases.joint.steps=100000",
        "phases.joint.discriminator_every=1",
        "checkpoints.every=1000000",
    ]


def spare_a_core() -> int:
    """Keep this thread, and those that it starts, from the last core, which saves get; how many are left."""
    *training, spare = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, training)

    def move(event: str, details: tuple[Any, ...]) -> None:
        if event == "glci.checkpoint" and details[0] == "write":
            os.sched_setaffinity(0, [spare])

    sys.addaudithook(move)
    return len(training)


def measure(words: list[str], *, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of the windows, and what was saved; leaves a checkpoint of step 1 behind."""
    config = compose.load(words)
    saved: list[SaveResult] = []
    with joined(config.engine) as world:
        trainer = prepare(config, world)
        batch, plan = trainer.step.to_device(next(trainer.batches.from_step(0))), trainer.schedule.at(0)
        saver = Saver(
            trainer.folder.checkpoints, trainer.attempt, world, CheckpointsConfig(keep=2), on_saved=saved.append
        )
        number = 0

        def window(save: bool, wait: bool) -> float:
            nonlocal number
            start = time.perf_counter()
            for step in range(steps):
                trainer.step.gan.update(batch, plan)
                if save and step == 0:
                    number += 1
                    saver.save(trainer.checkpoints.state(), step=number, phase="joint", ends_phase=False)
                    if wait:
                        saver.wait()
            seconds = time.perf_counter() - start
            saver.wait()
            return seconds

        kinds: dict[str, Callable[[], float]] = {
            "without": lambda: window(False, False),
            "waited for": lambda: window(True, True),
            "behind": lambda: window(True, False),
        }
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        # The first of each warms up: memory of the images, the optimisers' state.
        for turn in range(rounds + 1):
            for name, run in kinds.items():
                found = run()
                if turn:
                    seconds[name].append(found)
                    print(f"{name:12s} {found:7.3f} s", flush=True)
        saver.save(trainer.checkpoints.state(), step=1_000_000, phase="joint", ends_phase=False)
        saver.wait()
        trainer.close()
    lost = {
        name: [one - plain for one, plain in zip(seconds[name], seconds["without"], strict=True)]
        for name in ("waited for", "behind")
    }
    medians = {name: statistics.median(values) for name, values in lost.items()}
    return {
        "steps_in_a_window": steps,
        "window_seconds": seconds,
        "lost_seconds": medians,
        "ratio": medians["behind"] / medians["waited for"],
        "copy_seconds": statistics.median(each.copy_seconds for each in saved[2:]),
        "write_seconds": statistics.median(each.write_seconds for each in saved[2:]),
        "checkpoint_mib": saved[-1].bytes / 2**20,
    }


def restart(words: list[str], run: Path) -> dict[str, Any]:
    """Resume by the command, with the shards and the checkpoint in the page cache, to the end of a step."""
    words = [*words, "phases.joint.steps=1000001", "checkpoints.accept=[phases.joint.steps]"]
    command = [sys.executable, "-m", "glci_dist", "train", *words]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    (event,) = (event for event in read_journal(run) if isinstance(event, FirstStepDone))
    parts = event.startup_seconds
    return {"parts": parts, "to_the_first_step": sum(parts.values()), "whole_command": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps of a window, long enough for the write")
    parser.add_argument("--spare-core", action="store_true", help="training leaves a core to the saving")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure (the temporary folder)")
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=arguments.folder) as folder:
        shards = render_shards(Path(folder), photos=200)
        words = [*overrides(shards, folder, arguments.batch), *arguments.overrides]
        cores = os.sched_getaffinity(0)
        if arguments.spare_core:
            words.append(f"engine.threads={spare_a_core()}")
        result = measure(words, rounds=arguments.rounds, steps=arguments.steps)
        os.sched_setaffinity(0, cores)
        result["restart"] = restart(words, Path(folder) / "bench")
    result["hardware"], result["overrides"] = hardware(), arguments.overrides
    result["batch"], result["spare_core"] = arguments.batch, arguments.spare_core
    print(f"checkpoint                    {result['checkpoint_mib']:.0f} MiB")
    print(f"training loses, waiting       {result['lost_seconds']['waited for']:.3f} s")
    print(f"training loses, behind        {result['lost_seconds']['behind']:.3f} s")
    print(f"ratio                         {result['ratio']:.3f}   (goal: at most 0.2)")
    for part, seconds in result["restart"]["parts"].items():
        print(f"restart: {part:<25s} {seconds:6.2f} s")
    print(f"restart: to the first step    {result['restart']['to_the_first_step']:6.2f} s")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
