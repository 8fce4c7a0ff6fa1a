"""`glci evaluate`: load the networks of runs, and compare them and the baselines on held-out shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from glci_dist import compose, stored_config
from glci_dist.checkpoints import reading
from glci_dist.checkpoints.manifest import TemporarilyUnreadable, folder_name
from glci_dist.checkpoints.registry import Registry
from glci_dist.cluster import collectives
from glci_dist.cluster.world import World, joined
from glci_dist.config import Config, EngineConfig
from glci_dist.data.index import Index, load_index
from glci_dist.data.processes import available_processes
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from glci_dist.evaluation.baselines import CompletionMethod, mean_colour, telea
from glci_dist.evaluation.evaluate import complete_samples, evaluate, raised_on_all_ranks
from glci_dist.evaluation.feature_metrics import EfficientNet, FeatureMetric, Inception, Lpips
from glci_dist.evaluation.identity import Identity
from glci_dist.evaluation.protocol import EvaluationPhotos, HoleProtocol, frozen_protocol
from glci_dist.evaluation.published import published_protocol
from glci_dist.evaluation.report import prepare_folder, write_report
from glci_dist.models.build import build_completion
from glci_dist.models.completion import fill_colour
from glci_dist.runs.folder import RunFolder

_SAMPLES = 8
MEAN_COLOUR, TELEA = "mean colour", "OpenCV Telea"


@dataclass(frozen=True)
class EvaluationRequest:
    """The arguments of an evaluation."""

    runs: Sequence[str]
    """Folders of runs, ``RUN`` or ``RUN@STEP``."""
    shards: str
    masks: str | None = None
    """Name of a frozen mask set; None: ``box``, if there is no ``protocol`` either."""
    protocol: str | None = None
    """Name of a published protocol, in place of a mask set."""
    photos: int | None = None
    """Number of photos; None: all."""
    batch: int = 32
    resamples: int = 200
    identity: bool = False
    fid_weights: Path | None = None
    lpips_weights: Path | None = None
    out: Path | None = None
    """Folder of the report; None: ``evaluation`` in the first run's folder."""


@dataclass(frozen=True)
class LoadedGenerator:
    """A completion network, loaded from a run's checkpoint."""

    config: Config
    step: int
    network: nn.Module
    """In evaluation mode; the moving average, if the run has one."""

    @property
    def name(self) -> str:
        return f"{self.config.name} (step {self.step})"


def evaluate_runs(request: EvaluationRequest) -> None:
    """Measure runs on held-out shards, write the report and print it; on every rank of a launcher's world.

    Raises ``UserError`` for a folder without a checkpoint, shards that cannot be read, and runs that do not
    complete photos of one size.
    """
    for option, number, least in (
        ("--photos", request.photos if request.photos is not None else 1, 1),
        ("--batch", request.batch, 1),
        ("--resamples", request.resamples, 0),
    ):
        if number < least:
            raise UserError(f"{option}={number} is too small: it must be at least {least}")
    if request.masks is not None and request.protocol is not None:
        raise UserError(
            f"--masks={request.masks} and --protocol={request.protocol} both name the holes: give one of them"
        )
    with joined(EngineConfig()) as world:
        # Rank 0 chooses: a run that is still training may save another checkpoint meanwhile.
        collectives.mark_progress("verifying checkpoints", unbounded=True)
        steps = world.on_main(lambda: [_newest_step(run) for run in request.runs])
        with raised_on_all_ranks(world):
            generators = [
                load_generator(_split_step(run)[0], step) for run, step in zip(request.runs, steps, strict=True)
            ]
            index = load_index(request.shards, generators[0].config.data.cache)
        _evaluate(request, generators, index, world)


def _evaluate(request: EvaluationRequest, generators: Sequence[LoadedGenerator], index: Index, world: World) -> None:
    first = generators[0].config
    _check_sizes(generators)
    names = _names(request, generators)
    target = request.out or _split_step(request.runs[0])[0] / "evaluation"
    store = ShardStore(index, first.data.cache)
    photos = EvaluationPhotos(
        index, store, size=first.data.size, short_edge=first.data.short_edge[0], count=request.photos
    )
    protocol = _holes(request, first)
    methods: dict[str, CompletionMethod] = {
        MEAN_COLOUR: mean_colour(fill_colour(generators[0].network).flatten().tolist()),
        TELEA: telea,
        **{name: complete_with(each.network, world.device) for name, each in zip(names, generators, strict=True)},
    }
    with _feature_metrics(request, world) as feature_metrics:
        # Before the long part, so that a folder that cannot be written fails early.
        world.on_main(lambda: prepare_folder(target))
        result = evaluate(
            methods,
            photos,
            protocol,
            feature_metrics=feature_metrics,
            baselines=(MEAN_COLOUR, TELEA),
            batch=request.batch,
            replicates=request.resamples,
            world=world,
            progress=True,
        )
    # Rank 0 works alone here; the other ranks wait without bound.
    collectives.mark_progress("the intervals of an evaluation", unbounded=True)
    if result is not None:
        result.resample(progress=True)
        samples = complete_samples(methods, photos, protocol, count=_SAMPLES)
        picture = write_report(result, samples, target, networks=names, beside=TELEA)
        print(result.table(names), end="")
        print(f"written: {target / 'evaluation.json'}, {target / 'evaluation.md'}, {picture}")


def _holes(request: EvaluationRequest, config: Config) -> HoleProtocol:
    """The requested holes; raises ``UserError`` for an unknown name, or where the run's box does not fit its photos."""
    if request.protocol is None:
        masks = request.masks or "box"
        try:
            return frozen_protocol(masks, config.data.size, config.holes)
        except UserError as error:
            if masks != "box" or not config.holes.custom:
                raise
            # Training did not need them.
            raise UserError(
                f"--masks=box takes its sides from {config.name}, which has holes of its own (holes.custom) and sides "
                f"that do not fit ({error}): choose another set, such as --masks=centre"
            ) from error
    return published_protocol(request.protocol, config.data.size)


def _check_sizes(generators: Sequence[LoadedGenerator]) -> None:
    """Raise ``UserError`` if the runs were trained on photos of different sizes."""
    first = generators[0]
    for each in generators:
        for key in ("size", "short_edge"):
            one, other = (getattr(config.data, key) for config in (first.config, each.config))
            if one != other and (key == "size" or one[0] != other[0]):
                raise UserError(
                    f"{first.name} has data.{key}={one} and {each.name} {other}: measure them by themselves"
                )


def _names(request: EvaluationRequest, generators: Sequence[LoadedGenerator]) -> list[str]:
    """A name for each run, all different; raises ``UserError`` if a run is given twice."""
    names = [each.name for each in generators]
    if len(set(names)) < len(names):
        # Runs in different folders may have the same name.
        names = [
            f"{_split_step(run)[0]} (step {each.step})" for run, each in zip(request.runs, generators, strict=True)
        ]
    if len(set(names)) < len(names):
        raise UserError(f"{max(names, key=names.count)} is named twice: name each run, or RUN@STEP, once")
    return names


def _newest_step(run: str) -> int:
    """The step after ``@``, or that of the run's newest intact checkpoint; prints which newer ones are damaged."""
    folder, step = _split_step(run)
    found = RunFolder(folder)
    for note in stored_config.read(found.config_file).notes():
        print(f"{found.config_file} has {note}: the network is read with what is known")
    if step is not None:
        return step

    def say(path: Path, problem: str) -> None:
        print(f"{path} is damaged ({problem}): an older one is taken")

    try:
        checkpoint = reading.newest_intact(found.checkpoints, damaged=say)
    except TemporarilyUnreadable as error:
        raise UserError(f"{error}: mend that, and try again") from error
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint yet: one is written at the end of each phase")
    return checkpoint.step


def load_generator(folder: Path, step: int) -> LoadedGenerator:
    """The network of a run's checkpoint; raises ``UserError`` if that is missing or damaged."""
    found = RunFolder(folder)
    config = _known_config(found.config_file)
    path = found.checkpoints / folder_name(step)
    if not path.is_dir():
        raise UserError(f"{folder} has no checkpoint of step {step}: glci checkpoints list {folder}")
    try:
        checkpoint, problems = reading.verify_checkpoint(path)
    except TemporarilyUnreadable as error:
        raise UserError(f"{error}: mend that, and try again") from error
    if checkpoint is None:
        raise UserError(f"{path} is damaged ({'; '.join(problems)}): name another step")
    network = build_completion(config)
    Registry({"average" if config.engine.ema else "completion": network}).load(checkpoint, verified=True)
    return LoadedGenerator(config, step, network.eval())


def _known_config(path: Path) -> Config:
    """A run's configuration; raises ``UserError`` if its network has settings that this version does not know."""
    found = stored_config.read(path)
    network = [f"{key}={value}" for key, value in found.gone.items() if key in compose.keys(found.config)]
    problem = next((each for each in network if each.startswith(("model.", "data.size", "engine.ema"))), None)
    problem = problem or compose.unknown_choice(found.config, "model.")
    if problem:
        raise UserError(f"{path}: {problem} is not known to this version: evaluate with the version that wrote it")
    return found.config


def complete_with(network: nn.Module, device: torch.device) -> CompletionMethod:
    """The network as a method."""
    network.to(device)

    def complete(photos: Tensor, masks: Tensor) -> Tensor:
        images = photos.to(device).permute(0, 3, 1, 2).float().div(255)
        return network(images, masks.to(device))

    return complete


def _split_step(run: str) -> tuple[Path, int | None]:
    """A run's folder, and the step after ``@`` if there is one."""
    before, at, step = run.rpartition("@")
    if not at or Path(run).is_dir():
        return Path(run), None
    if not step.isdigit():
        raise UserError(f"{run}: behind @ stands the step of a checkpoint, a whole number")
    return Path(before), int(step)


@contextmanager
def _feature_metrics(request: EvaluationRequest, world: World) -> Iterator[list[FeatureMetric]]:
    """The requested metrics; what fails on one rank raises ``UserError`` on every rank."""
    found: list[FeatureMetric] = []
    with ExitStack() as at_end:
        with raised_on_all_ranks(world):
            found.append(EfficientNet(world.device))
            if request.lpips_weights is not None:
                found.append(Lpips(request.lpips_weights, world.device))
            if request.fid_weights is not None:
                found.append(Inception(request.fid_weights, world.device))
            if request.identity:
                identity = Identity(max(1, available_processes() // world.local_size))
                at_end.callback(identity.close)
                found.append(identity)
        yield found
