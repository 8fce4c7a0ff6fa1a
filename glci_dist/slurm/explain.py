"""`glci explain`: what a submission would do and need, reckoned before anything is queued."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from glci_dist.config import Config
from glci_dist.data.index import Index, load_index
from glci_dist.data.location import is_remote
from glci_dist.data.stages import stages
from glci_dist.errors import UserError, in_a_line
from glci_dist.models.batch_norm import local_statistics
from glci_dist.models.build import build_completion, build_discriminators
from glci_dist.rules import batches, world_sizes
from glci_dist.runs.events import CheckpointSaved
from glci_dist.runs.folder import RunFolder
from glci_dist.runs.journal import read_journal
from glci_dist.runs.ledger import account
from glci_dist.slurm.asking import Silence
from glci_dist.slurm.pace import in_words, seconds_a_pixel
from glci_dist.slurm.preflight import refusals
from glci_dist.slurm.submit import Request
from glci_dist.training.phases import Schedule
from glci_dist.training.resume_changes import expected_changes

_DISK_BYTES_S = 200e6
"""What a shared disk is supposed to take where no save was measured."""
_STARTUP_S = 60.0
_STATES = 2
"""Numbers that an optimiser keeps a weight: moments (Adam), averages (Adadelta). Muon saves two too, and keeps one."""
_MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes on the device of one rank, by what they are for."""

    weights: int
    gradients: int
    optimizers: int
    average: int
    activations: int
    """Kept for the backward pass of one micro-batch of the phase that needs most."""

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def memory(config: Config, ranks: int) -> Memory:
    """The device memory of one rank; libraries' own, a few hundred MiB, not counted."""
    with torch.device("meta"):
        completion, discriminators = build_completion(config), build_discriminators(config)
    both = _numel(completion) + _numel(discriminators)
    kept = {stage.batch * _activations(config, stage.size, completion, discriminators) for stage in stages(config)}
    return Memory(
        weights=4 * both,
        gradients=4 * both,
        optimizers=4 * _STATES * both // (ranks if config.engine.zero_stage else 1),
        average=4 * _numel(completion) if config.engine.ema else 0,
        activations=max(kept) // ranks // config.engine.accumulation,
    )


def checkpoint_bytes(config: Config) -> int:
    """The size of a checkpoint: networks, moving average and the optimisers' state, in fp32."""
    whole = memory(config, 1)
    return whole.weights + whole.average + whole.optimizers


def lines(request: Request, *, images_per_second: float | None) -> Iterator[str]:
    """What is to be said of a submission, line by line; then ``UserError`` with every reason to refuse it, if any."""
    config, cluster = request.config, request.config.cluster
    reasons, silence = [], None
    try:
        reasons = refusals([request])
    except Silence as error:
        silence = error
    yield f"run        {request.run}"
    yield from _batch(config)
    with suppress(UserError):
        index = load_index(config.data.shards, config.data.cache)
        yield from _shards(config, index)
        yield from (f"resuming   {line}" for line in expected_changes(RunFolder(request.run), config, index.digest))
    try:
        need = memory(config, cluster.nodes * cluster.workers)
        names = {"optimizers": "optimisers", "average": "moving average"}
        told = ", ".join(f"{names.get(part, part)} {value / _MIB:.0f}" for part, value in asdict(need).items())
        yield f"memory     {need.total / _MIB:.0f} MiB a rank: {told}"
        yield from _checkpoints(request)
    except Exception as error:  # a network of the user's can raise anything without memory behind its tensors
        if not (config.model.completion.custom or config.model.discriminator.custom):
            raise
        yield f"memory     not known of a network of your own ({in_a_line(error)})"
    yield from _time(request, images_per_second)
    with suppress(UserError):
        yield from request.backend.explain(request.job())
    if silence is not None:
        raise silence
    if reasons:
        raise UserError(f"it would be refused: {'; '.join(reasons)}")
    if delay := request.backend.waits_for(cluster):
        yield delay
    yield "it would be taken"


def _batch(config: Config) -> Iterator[str]:
    cluster, accumulation = config.cluster, config.engine.accumulation
    least, worlds = cluster.min_nodes or cluster.nodes, world_sizes(config)
    for nodes in range(cluster.nodes, least - 1, -1):
        ranks = nodes * cluster.workers
        if ranks not in worlds:
            continue
        slots = config.global_batch // ranks
        micro = f" in {accumulation} micro-batches of {slots // accumulation}" if accumulation > 1 else ""
        head = "batch      " if nodes == cluster.nodes else "           or "
        yield (
            f"{head}{config.global_batch} = {nodes} node(s) x {cluster.workers} workers x {slots} slots a rank{micro}"
        )
    for key, batch in batches(config).items():
        if key != "global_batch" and batch != config.global_batch:
            yield f"           {key}={batch}"


def _shards(config: Config, index: Index) -> Iterator[str]:
    size = sum(shard.bytes for shard in index.shards)
    mean = size / len(index.shards)
    yield f"data       {index.total:,} photos in {len(index.shards)} shards, {size / 2**30:.2f} GiB"
    at_once = min(len(index.shards), 2 * _lanes(config) * config.data.order.block_shards)
    if is_remote(index.root):
        room = config.data.cache.max_gib * 2**30
        fits = "holds all of them" if room >= size else f"holds {room / size:.0%} of them: the rest is fetched again"
        yield (
            f"           a node reads from at most {at_once} shards at a time ({at_once * mean / 2**30:.2f} GiB), and "
            f"its cache (data.cache.max_gib={config.data.cache.max_gib:g}) {fits}"
        )
    else:
        yield f"           on a shared folder: a node reads from at most {at_once} shards at a time, no cache is used"


def _lanes(config: Config) -> int:
    """The most lanes of the order that the slots of a node lie in."""
    share = max(1, config.global_batch // config.cluster.nodes)
    lane = max(1, config.global_batch // config.data.order.lanes)
    firsts = range(0, config.global_batch, share)
    return max((first + share - 1) // lane - first // lane + 1 for first in firsts)


def _checkpoints(request: Request) -> Iterator[str]:
    config, cluster = request.config, request.config.cluster
    size = checkpoint_bytes(config)
    measured = [
        event.copy_seconds + event.write_seconds
        for event in read_journal(request.run)
        if isinstance(event, CheckpointSaved) and event.write_seconds
    ]
    seconds = max(measured) if measured else size / _DISK_BYTES_S
    how = "the longest measured" if measured else f"estimated at {_DISK_BYTES_S / 1e6:.0f} MB/s"
    yield f"checkpoint {size / _MIB:.0f} MiB; saving takes {seconds:.1f} s ({how})"
    lead = cluster.signal_lead_s
    enough = "enough" if lead >= 2 * seconds + 10 else "TOO SHORT: raise cluster.signal_lead_s"
    yield f"           the signal comes {lead} s before the time limit, for a step and a save: {enough}"


def _time(request: Request, images_per_second: float | None) -> Iterator[str]:
    config, cluster = request.config, request.config.cluster
    schedule = Schedule(config.phases, global_batch=config.global_batch, size=config.data.size)
    speeds = [seconds_a_pixel(attempt, schedule) for attempt in account(request.run).attempts]
    measured = [speed for speed in speeds if speed is not None]
    yield f"steps      {schedule.steps:,}: " + ", ".join(
        f"{name} {phase.steps:,}" for name, phase in config.phases.items()
    )
    if images_per_second is None and not measured:
        yield "time       not known: give --images-per-second, or start the run once"
        return
    photo = config.data.size**2
    if images_per_second is not None:
        speed, how = images_per_second, "given"
    else:
        speed, how = 1 / (measured[-1] * photo), "measured, the mean of its last attempt"
    seconds = schedule.pixels() / photo / speed
    usable = 60 * cluster.time_min - cluster.signal_lead_s - _STARTUP_S
    again = max(0, math.ceil(seconds / usable) - 1) if usable > 0 else math.inf
    yield (
        f"time       {seconds / 3600:.1f} h at {in_words(speed)} img/s of {config.data.size} px ({how}); "
        f"with {cluster.time_min} min an attempt it is "
        f"queued again {again} time(s)"
    )


def _activations(config: Config, size: int, completion: nn.Module, discriminators: nn.Module) -> int:
    """Bytes a photo of ``size`` px that the backward pass of an update keeps: of both networks at ``data.size``."""
    patch, photos = config.holes.patch, 2
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            seen[id(tensor.untyped_storage())] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.device("meta"),
        # What is kept does not depend on the photos that share their statistics.
        local_statistics(),
    ):
        completed = completion(torch.empty(photos, 3, size, size), torch.empty(photos, 1, size, size))
        patches = torch.empty(photos, 3, patch, patch)
        if size == config.data.size:
            discriminators((torch.empty(photos, 3, size, size), patches), (completed, patches))
    wide = 4 if config.engine.precision == "fp32" else 2
    return sum(tensor.numel() * wide for tensor in seen.values()) // photos


def _numel(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
