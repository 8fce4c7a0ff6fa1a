"""How this method's reimplementations went wrong: each failure by itself, in an otherwise sound run.

Puts one mistake (docs/history.md tells them) into the program while it runs, trains, and says what became of the
figures and what the doctor said, beside the same run without it. A mistake that touches only the contest goes on
from the sound run's end of phase 1; the sound run is trained first where it is not there yet. What a phase 3 has to
beat (`more`) is no mistake, and is held beside the sound run in the same way.

    python -m benchmarks.history sigmoid
    python -m benchmarks.history no-shuffle --data shards --experiment faces64
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from glci_dist import cli, compose
from glci_dist.checkpoints.manifest import folder_name
from glci_dist.config import LossConfig
from glci_dist.data.decode import decode
from glci_dist.data.index import load_index
from glci_dist.data.order import Order
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from glci_dist.models.batch_norm import BatchNorm2d
from glci_dist.models.discriminators import ContextDiscriminators
from glci_dist.runs.events import Completed, Diagnosed, FirstStepDone, PhaseStarted
from glci_dist.runs.folder import RunFolder
from glci_dist.runs.journal import read_journal
from glci_dist.training import gan_step, losses, trainer
from glci_dist.training.device_batch import DeviceBatch, to_device
from glci_dist.training.metric_registry import Metric
from glci_dist.training.phases import StepPlan

_DEMO = "shards/demo"

Swap = Callable[[argparse.Namespace], Any]
"""Makes a context in which the mistake is in the program."""


@dataclass(frozen=True)
class Failure:
    """One mistake: what it is, how it is put into the program, what else it changes."""

    what: str
    swap: Swap | None = None
    overrides: tuple[str, ...] = ()
    from_start: bool = False
    """Whether it touches phase 1 too."""
    against: str = "sound"
    """The run that its figures are divided by."""
    has_contest: bool = True
    """Whether it has a phase 3; if not, it is the bar, and the other run's figures are divided by its."""


@contextmanager
def unshuffled(arguments: argparse.Namespace) -> Iterator[None]:
    """Photos in one fixed order, epoch after epoch: by their brightness, as a corpus may be by session or subject."""
    index = load_index(f"{arguments.data}/train")
    cache = compose.load([f"data.shards={arguments.data}/train"]).data.cache
    store = ShardStore(index, cache)
    samples = [(shard, number) for shard, each in enumerate(index.shards) for number in range(each.samples)]
    brightness = [decode(store.sample(*sample)[1], short_edge=64).mean() for sample in samples]
    fixed = [samples[place] for place in np.argsort(brightness, kind="stable")]
    shuffled = Order.samples

    def read(self: Order, step: int, slots: range) -> list[tuple[int, int]]:
        if not np.array_equal(self._counts, index.counts):
            # The held-out faces of the picture grid.
            return shuffled(self, step, slots)
        first = self.lanes * self.position(step).in_lane
        return [fixed[first + slot] for slot in slots]

    with patch.object(Order, "samples", read):
        yield


@contextmanager
def without_scale(_: argparse.Namespace) -> Iterator[None]:
    """Batch norm without its scale and offset: they stay at 1 and 0."""
    forward = BatchNorm2d.forward

    def plain(self: BatchNorm2d, x: Tensor) -> Tensor:
        # Found before the parameters, to which no gradient but 0 is left.
        with patch.dict(self.__dict__, {"weight": self.weight * 0 + 1, "bias": self.bias * 0}):
            return forward(self, x)

    with patch.object(BatchNorm2d, "forward", plain):
        yield


@contextmanager
def at_the_holes_place(_: argparse.Namespace) -> Iterator[None]:
    """Real local patches where the hole is, so that the discriminators see the completed place and its original."""

    def placed(*words: Any) -> DeviceBatch:
        batch = to_device(*words)
        return replace(batch, real_patches=batch.fake_patches)

    with patch.object(trainer, "to_device", placed):
        yield


@contextmanager
def leaking(_: argparse.Namespace) -> Iterator[None]:
    """The completion network's backward fills the discriminators' gradients too, and nobody clears them.

    At the weight of the discriminators' own loss, as where the adversarial term has weight 1 and the reconstruction
    is weighed up instead.
    """
    discriminator_losses, update = losses.discriminator_losses, gan_step.GanTrainStep._discriminator_step

    def leaky(real: Tensor, completed: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
        real_loss, completed_loss = discriminator_losses(real, completed, config)
        # The discriminators' loss is half the sum of the two; what leaks is whole.
        leaked = 2 * losses.adversarial(completed, config)
        return real_loss, completed_loss + leaked - leaked.detach()

    def updated(self: gan_step.GanTrainStep, *words: Any, **more: Any) -> dict[Metric, Tensor]:
        # In phase 2 the completion network has no backward.
        leaks = any(isinstance(word, StepPlan) and word.is_joint for word in words)
        with patch.object(gan_step, "discriminator_losses", leaky if leaks else discriminator_losses):
            return update(self, *words, **more)

    with patch.object(gan_step.GanTrainStep, "_discriminator_step", updated):
        yield


@contextmanager
def sigmoid_first(_: argparse.Namespace) -> Iterator[None]:
    """The discriminators end in a sigmoid, and the loss, which has its own, takes that for a logit."""
    method = "logits_and_features"
    whole = getattr(ContextDiscriminators, method)

    def squashed(self: ContextDiscriminators, *images: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits, activations = whole(self, *images)
        return torch.sigmoid(logits), activations

    with patch.object(ContextDiscriminators, method, squashed), patch.object(gan_step, "real_threshold", lambda _: 0.5):
        yield


@contextmanager
def detached(_: argparse.Namespace) -> Iterator[None]:
    """The completions are shown to the discriminators as values, and no gradient comes back."""

    def valued(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def value(completed: Any, *others: Any) -> Tensor:
            seen = completed if isinstance(completed, Tensor) else completed[0]
            return function(completed, *others).detach() + 0 * seen.float().sum()

        return value

    with (
        patch.object(gan_step, "adversarial", valued(losses.adversarial)),
        patch.object(gan_step, "feature_matching", valued(losses.feature_matching)),
    ):
        yield


_ANSWERS = ("doctor.dominates=balance", "doctor.asleep=balance")
_FAST = ("phases.discriminator.discriminator_lr=2e-2", "phases.joint.discriminator_lr=3e-2")

FAILURES = {
    "sound": Failure("nothing"),
    "no-shuffle": Failure("photos are read in one fixed order", unshuffled, ("data.workers=0",), from_start=True),
    "no-scale": Failure("batch norm has no scale and offset", without_scale, from_start=True),
    "same-place": Failure("real local patches lie where the hole is", at_the_holes_place),
    "leaking": Failure("the completion network's backward leaves gradients in the discriminators", leaking),
    "sigmoid": Failure("the discriminators end in a sigmoid before the loss", sigmoid_first),
    "detached": Failure("the adversarial gradient never reaches the completion network", detached),
    "too-fast": Failure("the discriminators learn 100 times too fast", overrides=_FAST),
    "answered": Failure("the same, and the doctor may balance it", overrides=(*_FAST, *_ANSWERS)),
    "paper": Failure(
        "recipe=paper with phases.joint.balance=0.3, beside the end of its own phase 1",
        overrides=("recipe=paper", "phases.joint.balance=0.3"),
        from_start=True,
        against="paper@{phase_1}",
    ),
    "more": Failure(
        "none; in place of phases 2 and 3 as many minutes more of phase 1",
        overrides=(
            "phases.discriminator.steps=0",
            "phases.joint.discriminator_every=0",
            "phases.joint.alpha=0",
            "phases.joint.balance=0",
            "losses.feature_matching=0",
        ),
        has_contest=False,
    ),
}


def overrides(arguments: argparse.Namespace, name: str) -> list[str]:
    """The run's configuration; what differs from the sound run's is accepted on going on from it."""
    failure = FAILURES[name]
    shared = [
        f"experiment={arguments.experiment}",
        f"data.shards={arguments.data}/train",
        f"data.val={arguments.data}/val",
        f"runs={arguments.runs}",
        f"name={name}",
        f"engine.precision={arguments.precision}",
        *arguments.overrides,
    ]
    own = list(failure.overrides)
    if name == "more":
        own.append(f"phases.joint.steps={as_long(arguments.runs / 'sound')}")
    if failure.from_start:
        return [*shared, *own]
    return [*shared, *own, f"checkpoints.accept=[{','.join(['name', *(word.partition('=')[0] for word in own)])}]"]


def as_long(run: Path) -> int:
    """How many steps of phase 1, at its last photo size, take as long as the run's phases 2 and 3."""
    events = read_journal(run)
    phases = {event.phase: event for event in events if isinstance(event, PhaseStarted)}
    (end,) = (event for event in events if isinstance(event, Completed))
    started = [event for event in events if isinstance(event, FirstStepDone)]
    if len(started) != 1 or len(phases) < 3:
        raise UserError(f"{run} was interrupted, and its phases' times are not known: remove it, and run again")
    first, second = phases["completion"], phases["discriminator"]
    # The run's first step takes long.
    start = first if first.step else started[0]
    steps = second.step - first.step - (not first.step)
    return math.ceil((end.time - second.time) / (second.time - start.time) * steps)


def phase_1(arguments: argparse.Namespace, name: str) -> int:
    """Steps of a run's phase 1, the coarse ones too."""
    phases = compose.load(overrides(arguments, name)).phases
    return sum(phase.steps for name, phase in phases.items() if name in ("coarser", "coarse", "completion"))


def train(arguments: argparse.Namespace, name: str) -> None:
    """Train a run by ``torchrun`` with the mistake in it, from the sound run's phase 1 where that is untouched."""
    folder, sound = RunFolder(arguments.runs / name), RunFolder(arguments.runs / "sound")
    if is_complete(folder):
        # Perhaps another configuration's, or of other photos.
        folder.check(compose.load(overrides(arguments, name)), load_index(f"{arguments.data}/train").digest)
        return
    if name != "sound" and not FAILURES[name].from_start and not folder.path.exists():
        checkpoint = folder_name(phase_1(arguments, "sound"))
        aside = arguments.runs / f".{name}"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(sound.checkpoints / checkpoint, aside / "checkpoints" / checkpoint)
        shutil.copy(sound.config_file, aside)
        aside.rename(folder.path)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.workers}"]
    options = (f"--{key}={getattr(arguments, key)}" for key in ("data", "runs", "experiment", "precision"))
    here = ["-m", "benchmarks.history", name, *arguments.overrides, "--inside", *options]
    if code := subprocess.run([*words, *here], env={"OMP_NUM_THREADS": "1"} | os.environ).returncode:
        sys.exit(code)


def is_complete(folder: RunFolder) -> bool:
    """Whether a run has come to its end."""
    return folder.journal.exists() and any(isinstance(event, Completed) for event in read_journal(folder.path))


def diagnoses(run: Path) -> str:
    """What the doctor said while the run went on."""
    events = read_journal(run)
    if not FAILURES[run.name].has_contest:
        return "no contest to judge"
    found = [event for event in events if isinstance(event, Diagnosed)]
    return "; ".join(f"step {event.step}: {event.state}" for event in found) or "healthy all along"


def main() -> int:
    failures = "\n".join(f"  {name:12s} {failure.what}" for name, failure in FAILURES.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nfailures:\n{failures}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("failure", choices=FAILURES, metavar="FAILURE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    parser.add_argument("--data", default=_DEMO, metavar="DIR", help="shards in DIR/train and DIR/val (%(default)s)")
    parser.add_argument("--experiment", default="demo", help="(%(default)s)")
    parser.add_argument("--precision", default="bf16", help="bf16 or fp32 (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="ranks (%(default)s)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="(runs/history-EXPERIMENT)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.runs = arguments.runs or Path(f"runs/history-{arguments.experiment}")
    try:
        return inside(arguments) if arguments.inside else compare(arguments)
    except UserError as error:
        print(f"history: error: {error}", file=sys.stderr)
        return 2


def inside(arguments: argparse.Namespace) -> int:
    """Train, in a rank, with the mistake in the program."""
    name, swap = arguments.failure, FAILURES[arguments.failure].swap
    with ExitStack() as stack:
        if swap is not None:
            stack.enter_context(swap(arguments))
        return cli.main(["train", *overrides(arguments, name)])


def compare(arguments: argparse.Namespace) -> int:
    """Train both runs, evaluate them, and print what became of each."""
    name, failure = arguments.failure, FAILURES[arguments.failure]
    if arguments.data == _DEMO and (code := cli.main(["demo-corpus", _DEMO])):
        return code
    against = failure.against.format(phase_1=phase_1(arguments, name if failure.from_start else "sound"))
    for run in dict.fromkeys([name if "@" in against else against, name]):
        train(arguments, run)
    runs = list(dict.fromkeys([against, name] if failure.has_contest else [name, against]))
    folders = [str(arguments.runs / run) for run in runs]
    out = arguments.runs / name / "evaluation"
    if code := cli.main(["evaluate", *folders, "--data", f"{arguments.data}/val", "--out", str(out)]):
        return code
    found = json.loads((out / "evaluation.json").read_text())["methods"]
    for run, (label, figures) in zip(runs, list(found.items())[-len(runs) :], strict=True):
        told = ", ".join(f"{key} {figures[key]['value']:.4g}" for key in ("hole_l1_x100", "perceptual", "frechet"))
        print(f"{label}: {told}" + ("" if "@" in run else f"\n    the doctor: {diagnoses(arguments.runs / run)}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
