"""Every reason why a submission would be refused, found before anything is written or queued."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from glci_dist import compose
from glci_dist.checkpoints.manifest import newest_complete, resume_step
from glci_dist.components import components
from glci_dist.config import RESERVED_PORTS, Config
from glci_dist.data.index import load_index
from glci_dist.data.stages import check_all_holes, orders, stages
from glci_dist.data.verify import check_shards
from glci_dist.errors import UserError
from glci_dist.models.sizes import check_models
from glci_dist.rules import batches
from glci_dist.runs.folder import RunFolder
from glci_dist.slurm.asking import Silence
from glci_dist.slurm.backends.base import Backend
from glci_dist.slurm.jobs import active, check_idle
from glci_dist.slurm.submit import Request
from glci_dist.training.resume_checkpoint import check_newest_checkpoint


def refusals(wanted: Sequence[Request]) -> list[str]:
    """The reasons, a line each; none: the runs would be taken."""
    found: list[str] = []
    for request in wanted:
        found += [*_of_cluster(request.config, request.backend), *_of_run(request)]
    found += wanted[0].backend.scheduler_refusals(wanted[0].job())
    # In a sweep most are the same for every run.
    return list(dict.fromkeys(found))


def _of_cluster(config: Config, chosen: Backend) -> Iterator[str]:
    """What the cluster's part of the configuration, and the world that it makes, do not allow."""
    cluster = config.cluster
    if cluster.min_nodes > cluster.nodes:
        yield f"cluster.min_nodes={cluster.min_nodes} is more than cluster.nodes={cluster.nodes}: make it less"
    yield from chosen.refusals(config)
    if cluster.reserved_port + RESERVED_PORTS > 65536:
        yield (
            f"cluster.reserved_port={cluster.reserved_port} leaves no {RESERVED_PORTS} ports up to 65535: make it at "
            f"most {65536 - RESERVED_PORTS}"
        )
    ranks, accumulation = cluster.nodes * cluster.workers, config.engine.accumulation
    for key, batch in batches(config).items():
        if batch % (ranks * accumulation):
            yield (
                f"cluster.nodes={cluster.nodes} x {cluster.workers} workers do not share the global batch evenly "
                f"({key}={batch}, engine.accumulation={accumulation}): change one"
            )
            return
    yield from _said(lambda: compose.check_world(config, ranks, chosen.device()))


def standing(request: Request) -> str | None:
    """What of a run there is already, where nothing is to be submitted: it is complete, or a job carries it.

    Raises ``UserError`` where its folder holds another run, ``Silence`` without the scheduler's answer.
    """
    run = request.run
    steps = sum(phase.steps for phase in request.config.phases.values())
    if resume_step(run / "checkpoints") >= steps:
        RunFolder(run).check(request.config, load_index(request.config.data.shards).digest)
        return f"is complete (step {steps})"
    carrying = active(run)
    return f"has job {carrying[-1].job} in the queue already" if carrying else None


def _check_parts(config: Config) -> None:
    """Construct and try the user's own parts here already; torch is loaded for them alone."""
    if any(components(config)):
        from torch import device

        from glci_dist.training.step_parts import step_parts

        step_parts(config, device("cpu"))


def _of_run(request: Request) -> Iterator[str]:
    """What is wrong with the shards, or with the folder that the run would go on in."""
    config = request.config
    yield from _said(lambda: check_models(config))
    yield from _said(lambda: _check_parts(config))
    yield from _said(lambda: check_all_holes(config))

    def check_folder() -> None:
        index = load_index(config.data.shards, config.data.cache)
        check_shards(index)
        orders(index.counts, stages(config), seed=config.seed, config=config.data.order)
        folder = RunFolder(request.run)
        folder.check(config, index.digest)
        check_newest_checkpoint(folder.checkpoints, config)
        standing, broken = newest_complete(folder.checkpoints)
        if broken and standing is None:
            path, problem = broken[0]
            raise UserError(
                f"none of the {len(broken)} checkpoint(s) in {folder.checkpoints} stands ({path.name}: {problem}): "
                "mend what keeps them from being read, or remove them to begin at step 0"
            )
        steps = sum(phase.steps for phase in config.phases.values())
        if standing is not None and standing.step >= steps:
            raise UserError(
                f"{request.run} is complete (step {steps}), there is nothing to do: choose another name=..."
            )

    yield from _said(check_folder)
    yield from _said(lambda: check_idle(request.run, request.backend))
    yield from _said(lambda: _check_name(request.run))
    if held_out := config.data.val:
        yield from _said(lambda: check_shards(load_index(held_out, config.data.cache)))


def _check_name(run: Path) -> None:
    """Raise ``UserError`` where SLURM and submitit would read the folder's name as another one."""
    if "%" in str(run):
        raise UserError(
            f"a job's output cannot go to {run}: SLURM puts a job's number in the place of a % there: "
            "choose another name=... or runs=..."
        )
    try:
        str(run).encode()
    except UnicodeEncodeError:
        raise UserError(f"{run} is no text of UTF-8, as a batch script is: choose another runs=...") from None


def _said(check: Callable[[], object]) -> Iterator[str]:
    """What a check objects to. Raises ``Silence``, which is no objection."""
    try:
        check()
    except Silence:
        raise
    except UserError as error:
        yield str(error)
