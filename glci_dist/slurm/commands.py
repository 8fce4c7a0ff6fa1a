"""`glci submit`, `glci explain`, `glci cancel`."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from glci_dist.errors import UserError
from glci_dist.slurm import inherited
from glci_dist.slurm.asking import patience
from glci_dist.slurm.backends.choice import NAMED, backend
from glci_dist.slurm.jobs import active, follow, submitted, unnoted
from glci_dist.slurm.submit import Request, requests, submit

_SUBMIT_S = 120.0
"""For how long a scheduler that does not answer is asked again."""

_SUBMIT = """\
Put a run on a cluster, once: the job queues itself again at its time limit and after a preemption, goes on from
the last checkpoint after a crash or a lost node, and ends when the run is done.

examples:
  glci explain experiment=faces160 cluster=box data.shards=shards/demo/train name=first
  glci submit experiment=faces160 cluster=box data.shards=shards/demo/train name=first
  glci submit experiment=faces160 cluster=box data.shards=shards/demo/train name=sweep phases.joint.alpha=4e-4,1e-3
  glci submit experiment=demo cluster=local --wait

Overrides are those of `glci train`. Values with a comma between them are a sweep, a job array with one run each;
so are range(1,4) and choice(a,b).
Submitted again, perhaps with more values, only those of its runs are that are neither complete nor in the queue.
Variables of this shell that Slurm or submitit would read (SLURM_*, SBATCH_*, ...) do not count, and are named.
cluster={clusters} chooses a file of configs/cluster; each key is explained in glci_dist/config/, and
docs/slurm.md leads from a first submission to a post-mortem.
"""

_EXPLAIN = """\
Say what `glci submit` with the same words would do, without queueing anything: the batch script, how the global
batch is shared, the data that a node reads, what is not as the run was left, memory, checkpoints, time; and every
reason why it would be refused, the scheduler's own among them (then the exit code is 2).

example:
  glci explain experiment=faces160 cluster=box data.shards=shards/demo/train name=first --images-per-second 900
"""

_CANCEL = """\
Cancel the run's job, whether it waits or runs. What was saved stays: submit again, and it goes on.

example:
  glci cancel runs/first
"""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], clusters: str) -> None:
    """Add `submit`, `explain` and `cancel`; each sets ``run``, a function of the arguments."""
    description = _SUBMIT.replace("{clusters}", clusters)
    parser = subparsers.add_parser("submit", help="put a run on a cluster", description=description)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    parser.add_argument("--wait", action="store_true", help="follow the job's output until it ends")
    parser.set_defaults(run=_submit, asks_cluster=True)
    summary = "say what submitting a run would do and need"
    explain = subparsers.add_parser("explain", help=summary, description=_EXPLAIN)
    explain.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    explain.add_argument(
        "--images-per-second",
        type=speed,
        metavar="N",
        help="speed to reckon with, of photos of data.size; smaller ones count by their pixels (that measured)",
    )
    explain.set_defaults(run=_explain, is_product=True, asks_cluster=True)
    cancel = subparsers.add_parser("cancel", help="cancel a run's job", description=_CANCEL)
    cancel.add_argument("folder", metavar="RUN", type=Path, help="the run's folder, such as runs/faces64")
    cancel.set_defaults(run=_cancel, asks_cluster=True)


def _submit(parsed: argparse.Namespace) -> int:
    from glci_dist.slurm.preflight import refusals

    wanted = requests(parsed.overrides)
    _tell_environment(wanted[0])
    with patience(_SUBMIT_S):
        wanted = _missing(wanted)
        if not wanted:
            print("all runs of the sweep are there already: nothing is submitted")
            return 0
        if reasons := refusals(wanted):
            raise UserError(f"refused: {'; '.join(reasons)}; `glci explain` shows what is asked of the cluster")
        if delay := wanted[0].backend.waits_for(wanted[0].config.cluster):
            print(delay, flush=True)
        made = submit(wanted)
    for request, (told, _) in zip(wanted, made, strict=True):
        run = _shown(request.run)
        print(f"job {told.job} ({told.executor}): {run}")
        print(f"  how it goes:   glci status {run}")
        print(f"  its output:    {_shown(Path(told.out))}")
        print(f"  the curves:    tensorboard --logdir {run}/tensorboard", flush=True)
    if not parsed.wait and not wanted[0].backend.is_followed:
        return 0
    return max(follow(request.run, *job) for request, job in zip(wanted, made, strict=True))


def _tell_environment(request: Request) -> None:
    """Say what counts of this process's environment, and what does not."""
    chosen = request.backend
    for line in inherited.lines(request.config.cluster, os.environ, counts=chosen.counts, left_out=chosen.left_out):
        print(line, flush=True)


def _missing(wanted: Sequence[Request]) -> list[Request]:
    """Those of a sweep that are neither complete nor in the queue; the others are named. A run alone is wanted."""
    from glci_dist.slurm.preflight import standing

    if len(wanted) == 1:
        return list(wanted)
    there = {request.run: standing(request) for request in wanted}
    for run, what in there.items():
        if what:
            print(f"{_shown(run)} {what}: it is not submitted again", flush=True)
    return [request for request in wanted if not there[request.run]]


def speed(word: str) -> float:
    """A speed of the command line, above 0; its name is part of what argparse says."""
    if not 0 < (speed := float(word)) < math.inf:
        raise argparse.ArgumentTypeError(f"{word} is no speed: give a number above 0")
    return speed


@patience(_SUBMIT_S)
def _explain(parsed: argparse.Namespace) -> int:
    from glci_dist.slurm.explain import lines

    wanted = requests(parsed.overrides)
    _tell_environment(wanted[0])
    for number, request in enumerate(_missing(wanted)):
        if number:
            print()
        for line in lines(request, images_per_second=parsed.images_per_second):
            print(line)
    return 0


@patience(_SUBMIT_S)
def _cancel(parsed: argparse.Namespace) -> int:
    jobs = submitted(parsed.folder)
    if not jobs:
        left = [found for name in NAMED for found in unnoted(parsed.folder, backend(name))]
        for scheduler, number in left:
            scheduler.cancel(number)
            print(f"job {number} is cancelled, of which {parsed.folder} says nothing (was it removed?)")
        if left:
            return 0
        raise UserError(f"{parsed.folder} was never submitted: name a run's folder, such as runs/first")
    waiting = active(parsed.folder)
    if not waiting:
        print(f"job {jobs[-1].job} of {parsed.folder} has ended already")
    for each in waiting:
        backend(each.executor).cancel(each.job)
        print(f"job {each.job} of {parsed.folder} is cancelled; to go on: glci submit {shlex.join(each.overrides)}")
    return 0


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
