"""Evaluations while a run trains say what `glci evaluate` says, and leave no trace in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from glci_dist import compose
from glci_dist.cli import main
from glci_dist.training.train import train
from tests.journal import read_journal
from tests.small_run import final_files, small
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(200)]
STEPS = (3, 2, 2)


def train_with(overrides: list[str]) -> None:
    train(compose.load(overrides))


@pytest.mark.parametrize("average", [True, False])
def test_a_run_measures_itself_on_its_way(faces_shards: str, tmp_path: Path, average: bool) -> None:
    ema = f"engine.ema={0.9 if average else 0}"
    run_world(2, train_with, small(faces_shards, tmp_path / "plain", steps=STEPS, extra=(ema,)))
    watched = (ema, f"data.val={faces_shards}", "monitor.evaluate_every=2", "monitor.evaluate_photos=40")
    run_world(2, train_with, small(faces_shards, tmp_path / "watched", steps=STEPS, extra=watched))

    run = tmp_path / "watched" / "run"
    files, plain = (final_files(folder, sum(STEPS)) for folder in (run, tmp_path / "plain" / "run"))
    assert files["networks.safetensors"] == plain["networks.safetensors"]
    events = [event for event in read_journal(run) if event["event"] == "evaluation"]
    # Every second step and each phase's end.
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6]
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    shown = board.Scalars("evaluation/frechet_hole")
    assert [point.step for point in shown] == [1, 2, 3, 4, 5, 6]

    words = ["--data", faces_shards, "--photos", "40", "--resamples", "0", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(run), *words]) == 0
    document = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    found = document["methods"][f"run (step {sum(STEPS)})"]
    assert len(found) == 8
    for name, figure in found.items():
        assert events[-1][name] == pytest.approx(figure["value"], rel=1e-5)
    assert shown[-1].value == pytest.approx(found["frechet_hole"]["value"], rel=1e-5)
