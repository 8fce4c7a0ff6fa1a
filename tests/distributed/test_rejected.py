"""What is not finite or does not decode is answered as configured, on every rank alike, and written down."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glci_dist import compose
from glci_dist.cluster.signals import stop_request
from glci_dist.cluster.world import joined
from glci_dist.data.batch import Batch
from glci_dist.data.scan import index_folder
from glci_dist.training.gan_step import DeviceBatch, GradientNormLimits, StepMeasurements
from glci_dist.training.phases import StepPlan
from glci_dist.training.setup import prepare
from glci_dist.training.trainer import Trainer
from tests.small_run import build_faces, events, newest_in, small, train_to_its_end
from tests.worlds import run_world

pytestmark = pytest.mark.distributed
POISONED_RANK = 1


@dataclass
class Outcome:
    """What a rank saw of a run whose photos were poisoned."""

    ending: str
    """Type and message of why it ended early; empty at its natural end."""
    changed: dict[int, list[str]] = field(default_factory=dict)
    """For each poisoned step, the tensors of any network that are not bitwise as before it."""
    norms: dict[int, list[float]] = field(default_factory=dict)
    """For each poisoned step, the gradient norms that were reported."""
    moved: bool = False
    """Whether the steps that were not poisoned changed the weights."""
    is_finite: bool = False
    """Whether all weights are, at the end."""
    keys: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Of this rank's samples at each poisoned step."""


def tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of all weights, running statistics and averages."""
    networks = trainer.step.networks()
    assert "average" in networks
    return {f"{side}/{name}": t.clone() for side, net in networks.items() for name, t in net.state_dict().items()}


def poisoned_run(overrides: list[str], steps: tuple[int, ...]) -> Outcome:
    """Train with one NaN in one photo of one rank at ``steps``."""
    config = compose.load(overrides)
    outcome = Outcome("")
    with joined(config.engine) as world, stop_request() as stop:
        trainer = prepare(config, world, stop=stop)
        real_update, real_run = trainer.step.gan.update, trainer.step.run
        start: dict[str, Tensor] = {}

        def update(batch: DeviceBatch, plan: StepPlan, limits: GradientNormLimits) -> StepMeasurements:
            start.clear()
            start.update(tensors(trainer))
            if plan.step in steps and world.rank == POISONED_RANK:
                photos = batch.photos.clone()
                photos[0, 0, 0, 0] = torch.nan
                batch = replace(batch, photos=photos)
            return real_update(batch, plan, limits)

        def run(batch: Batch | None, plan: StepPlan, limits: GradientNormLimits) -> StepMeasurements:
            measures, step = real_run(batch, plan, limits), plan.step
            changed = [name for name, tensor in tensors(trainer).items() if not tensor.equal(start[name])]
            if step not in steps:
                outcome.moved |= bool(changed)
                return measures
            outcome.changed[step] = changed
            updates = (measures.completion, measures.discriminator)
            outcome.norms[step] = [update.gradient_norm for update in updates if update is not None]
            return measures

        patched: Any = trainer.step
        patched.gan.update, patched.run = update, run
        stream = trainer.batches.stream
        trainer.batches.stream = lambda chosen: _noting(stream(chosen), steps, outcome)
        ending = trainer.run()
        outcome.ending = "" if ending is None else f"{type(ending).__name__}: {ending}"
        outcome.is_finite = all(bool(t.isfinite().all()) for t in tensors(trainer).values())
        trainer.close()
    return outcome


def _noting(batches: Iterable[Any], steps: tuple[int, ...], outcome: Outcome) -> Iterable[Any]:
    for batch in batches:
        if batch.step in steps:
            outcome.keys[batch.step] = batch.keys
        yield batch


@pytest.mark.parametrize("stage", [0, 1])
def test_skip_leaves_every_bit_as_before_on_both_ranks_and_training_goes_on(
    faces_shards: str, tmp_path: Path, stage: int
) -> None:
    poisoned = (0, 2, 5)  # the first step of all, and a step of each further phase
    overrides = small(faces_shards, tmp_path, steps=(2, 2, 3), extra=(f"engine.zero_stage={stage}",))
    ranks = run_world(2, poisoned_run, overrides, poisoned)

    for rank in ranks:
        assert rank.ending == ""
        assert rank.changed == {step: [] for step in poisoned}
        assert not any(torch.tensor(norms).isfinite().any() for norms in rank.norms.values())
        assert rank.moved
        assert rank.is_finite
    entries = events(tmp_path, "not-finite")
    assert [(entry["step"], entry["networks"], entry["answer"]) for entry in entries] == [
        (0, ["completion"], "skip"),
        (2, ["discriminator"], "skip"),
        (5, ["completion", "discriminator"], "skip"),
    ]
    for entry in entries:
        assert entry["keys"] == [key for rank in ranks for key in rank.keys[entry["step"]]]
    assert [entry["step"] for entry in events(tmp_path, "end")] == [7]


@pytest.mark.parametrize("stage", [0, 1])
def test_stop_ends_both_ranks_by_a_fault_with_the_state_from_before_saved(
    faces_shards: str, tmp_path: Path, stage: int
) -> None:
    extra = (f"engine.zero_stage={stage}", "engine.not_finite=stop")
    ranks = run_world(2, poisoned_run, small(faces_shards, tmp_path, steps=(4, 1, 1), extra=extra), (2,))

    for rank in ranks:
        assert rank.ending.startswith("Fault: step 2: 1 step(s) in a row had a gradient that is not finite")
        assert rank.changed == {2: []}
        assert rank.is_finite
    assert [(entry["step"], entry["answer"]) for entry in events(tmp_path, "not-finite")] == [(2, "stop")]
    saved = newest_in(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert (saved.step, saved.manifest.phase) == (3, "completion")
    assert events(tmp_path, "end") == []


def test_skipping_stops_all_the_same_after_as_many_steps_in_a_row_as_allowed(faces_shards: str, tmp_path: Path) -> None:
    overrides = small(faces_shards, tmp_path, steps=(9, 1, 1), extra=("engine.not_finite_limit=3",))
    ranks = run_world(2, poisoned_run, overrides, (0, 1, 3, 4, 5))

    for rank in ranks:
        assert rank.ending.startswith("Fault: step 5: 3 step(s) in a row")


def damage(shards: Path, shard: str, number: int) -> str:
    """Overwrite the middle of a sample in its tar and index the folder anew; returns the sample's key."""
    path = shards / shard
    with tarfile.open(path) as archive:
        member = archive.getmembers()[number]
    with path.open("r+b") as file:
        file.seek(member.offset_data + member.size // 4)
        file.write(bytes(member.size // 2))
    for sidecar in shards.glob("*.npy"):
        sidecar.unlink()
    index_folder(shards, processes=1)
    return member.name.split(".")[0]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """16 faces in two shards, one of which does not decode; its key."""
    shards = build_faces(tmp_path_factory.mktemp("faces16"), photos=16, samples=8)
    return shards, damage(shards, "shard-000001.tar", 3)


def train_and_say(overrides: list[str]) -> tuple[str, str]:
    """How training ends, and what this rank printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ending = train_to_its_end(overrides)
    return ending, said.getvalue()


def test_a_sample_that_does_not_decode_is_named_in_the_journal_and_the_run_goes_on(
    damaged: tuple[Path, str], tmp_path: Path
) -> None:
    shards, key = damaged
    # Four steps of four slots are one epoch: the sample is met once.
    overrides = small(shards, tmp_path, steps=(2, 1, 1))
    (ending, said), other = run_world(2, train_and_say, overrides)
    assert (ending, other) == ("", ("", ""))

    (entry,) = events(tmp_path, "replaced")
    assert f"step {entry['step']}: shard-000001.tar/{key} does not decode ({entry['reason']})" in said
    assert f"glci shards verify {shards}" in said
    assert "1 photo(s) that do not decode were replaced by others, 1 time(s) in 1 step(s)" in said
    assert str(tmp_path / "run" / "journal.jsonl") in said
    assert (entry["shard"], entry["key"]) == ("shard-000001.tar", key)
    assert entry["slot"] in range(4)
    assert entry["step"] in range(4)
    assert entry["reason"]
    assert len(events(tmp_path, "end")) == 1


def test_past_the_tolerance_every_rank_ends_with_one_line_and_the_state_is_saved(
    damaged: tuple[Path, str], tmp_path: Path
) -> None:
    overrides = small(damaged[0], tmp_path, steps=(8, 1, 1), extra=("data.tolerance=0",))
    (first, said), (second, _) = run_world(2, train_and_say, overrides)

    messages = [first, second]
    assert messages[0] == messages[1]
    # At an ending that is none of a run that is done, too.
    assert "1 photo(s) that do not decode were replaced" in said
    assert "1 of" in messages[0]
    assert "samples did not decode, more than data.tolerance=0.0" in messages[0]
    assert str(tmp_path / "run" / "journal.jsonl") in messages[0]
    assert "\n" not in messages[0]
    (entry,) = events(tmp_path, "replaced")
    saved = newest_in(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert saved.step == entry["step"] + 1
