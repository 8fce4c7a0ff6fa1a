"""A run goes on in another world: more ranks, fewer ranks, another ZeRO stage, with the same losses."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from glci_dist import compose
from glci_dist.cluster.signals import stop_request
from glci_dist.cluster.world import joined
from glci_dist.training.callbacks.base import Callback, Control, TrainedStep
from glci_dist.training.sample_digest import SampleDigest
from glci_dist.training.setup import prepare
from tests.distributed.recordings import tiny
from tests.small_run import newest_in
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
STEPS = (8, 4, 8)
Losses = dict[int, dict[str, float]]


class Recorder(Callback):
    """Keeps every step's losses, and has this process stopped by a signal at one of them."""

    def __init__(self, stop_in: int | None) -> None:
        self.values: Losses = {}
        self._stop_in = stop_in

    def after_step(self, done: TrainedStep, control: Control) -> None:
        step = done.report.plan.step
        found = done.report.values.items()
        self.values[step] = {name: value for name, value in found if name.startswith(("loss/", "accuracy/"))}
        if self._stop_in is not None and step == self._stop_in - 1:
            # Answered at the end of the next step.
            os.kill(os.getpid(), signal.SIGUSR2)

    def on_rewind(self, step: int) -> None:
        raise AssertionError("nothing rolls back here")


def train_some(overrides: list[str], stop_in: int | None) -> tuple[int, Losses, str]:
    """Go on to the end, or until a signal in step ``stop_in``: the first step, losses, why it ended."""
    config = compose.load(overrides)
    recorder = Recorder(stop_in)
    with joined(config.engine) as world, stop_request() as stop:
        trainer = prepare(config, world, stop=stop)
        trainer.start.report()
        if world.is_main:
            trainer.callbacks.all.append(recorder)
        ending = trainer.run()
        trainer.close()
    return trainer.first_step, recorder.values, "" if ending is None else str(ending)


def through_worlds(overrides: list[str], legs: Sequence[tuple[int, int, int | None]]) -> Losses:
    """Train in one world after the other: (ranks, ZeRO stage, the step in which a signal comes)."""
    losses: Losses = {}
    begin = 0
    for ranks, stage, stop_in in legs:
        first, found, ending = run_world(ranks, train_some, [*overrides, f"engine.zero_stage={stage}"], stop_in)[0]
        assert first == begin
        assert ("stopped by SIG" in ending) == (stop_in is not None)
        begin = first + len(found)
        assert sorted(found) == list(range(first, begin))
        losses |= found
    assert begin == sum(STEPS)
    return losses


def furthest(one: Losses, other: Losses) -> float:
    """The greatest relative difference of any loss at any step."""
    assert one.keys() == other.keys()
    return max(
        abs(other[step][name] - value) / max(abs(value), 1e-3)
        for step, losses in one.items()
        for name, value in losses.items()
        # An accuracy counts photos: where one is at the edge, rounding decides.
        if not name.startswith("accuracy/")
    )


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def undisturbed(
    request: pytest.FixtureRequest, faces_shards: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Losses]:
    runs = tmp_path_factory.mktemp("undisturbed")
    overrides = _overrides(faces_shards, runs, request.param)
    return request.param, through_worlds(overrides, ((2, 0, None),))


@pytest.mark.parametrize("stages", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1)], ids=["zero-0", "zero-1", "changing"])
def test_a_run_through_2_4_1_and_2_ranks_has_the_losses_of_an_undisturbed_one(
    undisturbed: tuple[str, Losses], faces_shards: str, tmp_path: Path, stages: tuple[int, ...]
) -> None:
    precision, expected = undisturbed
    overrides = _overrides(faces_shards, tmp_path, precision)
    # Stopped within each phase; 11 is the last step of the second.
    ends = (4, 10, 13, None)
    legs = [(ranks, stage, end) for ranks, stage, end in zip((2, 4, 1, 2), stages, ends, strict=True)]
    found = through_worlds(overrides, legs)

    difference = furthest(expected, found)
    print(f"{precision}: losses agree to {difference:.1e}")
    assert difference <= {"fp32": 1e-4, "bf16": 2e-2}[precision]
    saved = newest_in(tmp_path / "faces64" / "checkpoints")
    assert saved is not None
    assert SampleDigest.from_json(saved.manifest.facts["samples"]).count == 8 * sum(STEPS)


def test_the_same_world_again_is_bitwise_the_same_in_both_stages(faces_shards: str, tmp_path: Path) -> None:
    for stage in (0, 1):
        files = []
        for name, legs in (
            ("whole", [(2, stage, None)]),
            ("parted", [(2, stage, 5), (2, stage, 10), (2, stage, None)]),
        ):
            runs = tmp_path / f"{name}{stage}"
            through_worlds(_overrides(faces_shards, runs, "fp32"), legs)
            saved = newest_in(runs / "faces64" / "checkpoints")
            assert saved is not None
            files.append({file: (saved.path / file).read_bytes() for file in saved.manifest.files})
        assert len(files[0]) == 3
        assert files[0] == files[1]


def test_a_run_with_muon_goes_through_worlds_with_the_same_losses_and_is_bitwise_itself_again(
    faces_shards: str, tmp_path: Path
) -> None:
    # 16 channels at the least, so that there are matrices.
    chosen = ("optimizers.completion.kind=muon", "optimizers.discriminator.kind=muon", "model.completion.width=0.25")
    found: dict[str, Losses] = {}
    files = {}
    worlds: dict[str, list[tuple[int, int, int | None]]] = {
        "whole": [(2, 0, None)],
        "parted": [(2, 0, 5), (2, 0, 10), (2, 0, None)],
        "elastic": [(2, 0, 4), (4, 0, 10), (1, 0, None)],
    }
    for name, legs in worlds.items():
        found[name] = through_worlds([*_overrides(faces_shards, tmp_path / name, "fp32"), *chosen], legs)
        saved = newest_in(tmp_path / name / "faces64" / "checkpoints")
        assert saved is not None
        files[name] = {file: (saved.path / file).read_bytes() for file in saved.manifest.files}
    assert files["parted"] == files["whole"]
    assert furthest(found["whole"], found["elastic"]) <= 1e-4


def _overrides(shards: str, runs: Path, precision: str) -> list[str]:
    return tiny(
        shards,
        str(runs),
        steps=STEPS,
        extra=(f"engine.precision={precision}", "data.mean_colour=[0.5,0.5,0.5]", "name=faces64"),
    )
