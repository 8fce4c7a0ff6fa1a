"""Parts of the user's own, in files outside the package, named in the configuration and trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glci_dist import compose
from glci_dist.cli import main
from glci_dist.errors import Ending, UserError
from glci_dist.training.train import train
from tests.small_run import events, final_files, newest_in, small
from tests.worlds import run_world

MINE = Path(__file__).resolve().parent / "mine"
PARTS = (
    "model.completion.custom._target_=unet.UNet",
    "model.completion.custom.width=4",
    "model.discriminator.custom._target_=patch_gan.PatchDiscriminator",
    "model.discriminator.custom.width=4",
    "losses.terms.edges._target_=edges.EdgeLoss",
    "losses.terms.edges.weight=0.1",
    "losses.penalties.r2._target_=zero_centred.R2",
    "losses.penalties.r2.weight=0.01",
    "model.discriminator.normalization=none",
    "holes.custom._target_=ellipses.Ellipse",
    "metrics.sharpness._target_=edges.Sharpness",
    "callbacks.early._target_=early.EarlyStopping",
    "callbacks.early.patience=100",
    "loggers.lines._target_=jsonl.JsonLines",
    "monitor.scalars_every=2",
)
STEPS = (4, 2, 4)


def train_mine(overrides: list[str]) -> str:
    """Train with the parts of ``MINE`` on the path; why the run ended early, empty where it did not."""
    sys.path.insert(0, str(MINE))
    try:
        train(compose.load(overrides))
    except Ending as ending:
        return f"{type(ending).__name__}: {ending}"
    return ""


def train_without_reports(overrides: list[str]) -> str:
    """As ``train_mine``, while W&B reports no errors of its own over the network."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    return train_mine(overrides)


@pytest.fixture(scope="module")
def runs(faces_shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A run with all the parts, by the number of its ranks."""
    found = {}
    for size in (1, 2):
        found[size] = tmp_path_factory.mktemp(f"world{size}")
        words = small(faces_shards, found[size], steps=STEPS, extra=(*PARTS, "monitor.pictures_every=5"))
        assert run_world(size, train_mine, words) == [""] * size
    return found


@pytest.mark.distributed
def test_every_part_takes_part_in_the_training(runs: dict[int, Path]) -> None:
    run = runs[2] / "run"
    lines = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    assert lines[0]["begin"] == 0
    assert lines[0]["panels"]["sharpness"] == ["contest/sharpness"]
    written = [line for line in lines if "loss/reconstruction" in line]
    assert [line["step"] for line in written] == [1, 3, 7, 9]
    for line in written:
        assert line["loss/edges"] > 0
        assert line["contest/sharpness"] > 0
    assert all(line["loss/r2"] > 0 for line in lines if "loss/real" in line)
    # The picture's width is that of four columns of faces.
    assert [line["step"] for line in lines if "picture" in line] == [3, 4, 5, 9]
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert {"loss/edges", "loss/r2", "contest/sharpness"} <= set(board.Tags()["scalars"])


@pytest.mark.distributed
def test_a_callbacks_state_is_in_the_checkpoint(runs: dict[int, Path]) -> None:
    saved = newest_in(runs[2] / "run" / "checkpoints")
    assert saved is not None
    lines = [json.loads(line) for line in (runs[2] / "run" / "scalars.jsonl").read_text().splitlines()]
    state = saved.manifest.facts["callbacks.early"]
    assert 0 < state["best"] <= min(line["loss/reconstruction"] for line in lines if "loss/reconstruction" in line)


@pytest.mark.distributed
def test_two_ranks_train_what_one_trains(runs: dict[int, Path]) -> None:
    # With torch's own batch norm each rank would have the statistics of its own photos.
    lines = {
        size: [json.loads(line) for line in (run / "run" / "scalars.jsonl").read_text().splitlines()]
        for size, run in runs.items()
    }
    for one, two in zip(lines[1], lines[2], strict=True):
        names = {"loss/reconstruction", "loss/edges", "loss/r2", "contest/sharpness", "loss/real"}
        assert names & one.keys() == names & two.keys()
        for name in names & one.keys():
            assert one[name] == pytest.approx(two[name], rel=2e-3)


@pytest.mark.distributed
def test_a_run_with_parts_that_is_stopped_and_resumed_ends_with_the_same_weights(
    runs: dict[int, Path], faces_shards: str, tmp_path: Path
) -> None:
    stopped = small(faces_shards, tmp_path, steps=STEPS, extra=(*PARTS, "monitor.pictures_every=5"))
    first = [*stopped, "phases.joint.steps=1"]
    assert run_world(2, train_mine, first) == ["", ""]
    assert run_world(2, train_mine, [*stopped, "checkpoints.accept=[phases.joint.steps]"]) == ["", ""]
    assert len(events(tmp_path, "resume")) == 1
    # Of the last phase's length its learning rates do not depend.
    assert final_files(tmp_path / "run", sum(STEPS)) == final_files(runs[2] / "run", sum(STEPS))


@pytest.mark.distributed
def test_a_callback_ends_the_run_on_every_rank(faces_shards: str, tmp_path: Path) -> None:
    words = small(faces_shards, tmp_path, steps=(30, 0, 0), extra=(*PARTS, "callbacks.early.patience=1"))
    endings = run_world(2, train_mine, [*words, "phases.completion.completion_lr=0"])
    assert endings[0] == endings[1]
    assert "the reconstruction error has not fallen for 1 steps" in endings[0]


def test_a_run_goes_on_with_another_logger_and_another_metric(faces_shards: str, tmp_path: Path) -> None:
    words = small(faces_shards, tmp_path, steps=(2, 0, 0))
    assert run_world(1, train_mine, words) == [""]
    more = (
        "phases.completion.steps=3",
        "checkpoints.accept=[phases.completion.steps]",
        *(word for word in PARTS if word.startswith(("metrics", "loggers"))),
    )
    assert run_world(1, train_mine, [*words, *more]) == [""]
    assert "contest/sharpness" in (tmp_path / "run" / "scalars.jsonl").read_text()


@pytest.mark.distributed
def test_weights_and_biases_is_a_logger_in_its_offline_mode(faces_shards: str, tmp_path: Path) -> None:
    words = small(
        faces_shards,
        tmp_path,
        steps=(4, 0, 0),
        extra=(
            "loggers.wandb._target_=wandb_logger.WandbLogger",
            "loggers.wandb.project=faces",
            "monitor.scalars_every=2",
            "monitor.pictures_every=2",
        ),
    )
    assert run_world(1, train_without_reports, words) == [""]
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    logged = log.read_bytes()
    for name in (b"loss/reconstruction", b"learning_rate/completion", b"pictures", b"global_batch"):
        assert name in logged


@pytest.mark.distributed
def test_a_logger_that_fails_and_a_metric_that_is_not_finite_end_nothing(faces_shards: str, tmp_path: Path) -> None:
    broken = "tests.extending.broken."
    extra = (
        f"loggers.gone._target_={broken}Unreachable",
        f"metrics.mine._target_={broken}NotFinite",
        *("phases.joint.alpha=1e-3", "doctor.window=4", "doctor.every=4", "doctor.diverging=stop"),
    )
    assert run_world(2, train_mine, small(faces_shards, tmp_path, steps=(2, 2, 12), extra=extra)) == ["", ""]
    assert [event["step"] for event in events(tmp_path, "end")] == [16]
    failed = [event["observer"] for event in events(tmp_path, "not-shown")]
    assert failed == ["Unreachable"]


def test_an_ellipse_is_in_the_batches_and_the_patch_contains_it(faces_shards: str, tmp_path: Path) -> None:
    sys.path.insert(0, str(MINE))
    try:
        from glci_dist.data.holes import draw_holes

        config = compose.load(small(faces_shards, tmp_path, steps=(1, 0, 0), extra=PARTS))
        holes = draw_holes(config.holes, 32, seed=0, step=0, slots=range(200))
    finally:
        sys.path.remove(str(MINE))
    assert holes.pixels is not None
    areas = holes.pixels.sum((1, 2))
    assert areas.min() > 40
    for pixels, (left, top) in zip(holes.pixels, holes.fake_patches, strict=True):
        assert pixels[top : top + 20, left : left + 20].sum() == pixels.sum()
    # Round: its corners are no part of it.
    boxes = [np.argwhere(pixels) for pixels in holes.pixels]
    filled = [len(box) / np.prod(box.max(0) - box.min(0) + 1) for box in boxes]
    assert np.mean(filled) < 0.85


@pytest.mark.distributed
def test_a_run_whose_box_sides_its_own_holes_never_needed_is_told_which_masks_it_can_be_measured_with(
    faces_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(MINE))
    extra = ("holes.custom._target_=ellipses.Ellipse", "holes.max_side=30")
    assert run_world(1, train_mine, small(faces_shards, tmp_path, steps=(1, 0, 0), extra=extra)) == [""]
    words = ["evaluate", str(tmp_path / "run"), "--data", faces_shards, "--photos", "4", "--resamples", "0"]
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("glci: error: --masks=box takes its sides from run, which has holes of its own")
    assert "holes.max_side=30 is larger than the local patch (holes.patch=20)" in said
    assert said.endswith("choose another set, such as --masks=centre")
    assert main([*words, "--masks", "centre"]) == 0


def test_the_yaml_of_the_guide_composes_from_a_folder_of_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(MINE))
    guide = (MINE.parents[2] / "docs" / "extending.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", guide, flags=re.DOTALL)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    config = compose.load([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine", "data.shards=x"])
    assert (config.name, config.model.completion.custom["width"]) == ("mine", 32)
    assert config.losses.terms == {"edges": {"_target_": "edges.EdgeLoss", "weight": 0.1}}
    with pytest.raises(UserError, match=r"hydra\.searchpath=/nowhere is no folder: give its absolute path"):
        compose.load(["hydra.searchpath=[/nowhere]", "experiment=mine", "data.shards=x"])


def test_the_installed_command_finds_parts_on_the_path(faces_shards: str, tmp_path: Path) -> None:
    words = small(faces_shards, tmp_path, steps=(1, 0, 0), extra=PARTS)
    for path, code, said in ((str(MINE), 0, None), ("", 2, "put the folder that holds ellipses on PYTHONPATH")):
        done = subprocess.run(
            [sys.executable, "-m", "glci_dist", "config", *words],
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        assert said is None or said in done.stderr
        assert "Traceback" not in done.stderr
