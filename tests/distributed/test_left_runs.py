"""Runs that were changed since they were left: by another version, by hand, in their phases. What is there is said."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from glci_dist import compose
from glci_dist.checkpoints.manifest import MANIFEST_FILE, Manifest, folders, read
from glci_dist.cli import main
from glci_dist.errors import Ending
from glci_dist.training.train import train
from tests.journal import read_journal
from tests.small_run import final_files, small
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
STEPS = (8, 2, 2)


def said_in_training(overrides: list[str], log: Path) -> str:
    """What training prints, and at its end the line that ends it."""
    with log.open("w") as file, contextlib.redirect_stdout(file):
        try:
            train(compose.load(overrides))
        except Ending as ended:
            print(f"{type(ended).__name__}: {ended}")
    return log.read_text()


@pytest.fixture(scope="module")
def finished(faces_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with its checkpoints of steps 8, 10 and 12, in a folder of runs of its own."""
    runs = tmp_path_factory.mktemp("finished")
    run_world(1, said_in_training, small(faces_shards, runs, steps=STEPS), runs / "log")
    return runs / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it without the last checkpoint."""
    copy = Path(shutil.copytree(finished, tmp_path / "runs" / "run"))
    shutil.rmtree(copy / "checkpoints" / "step-00000012")
    return copy


def resume(run: Path, shards: str, *extra: str, steps: tuple[int, int, int] = STEPS) -> str:
    overrides = small(shards, run.parent, steps=steps, extra=extra)
    return str(run_world(1, said_in_training, overrides, run.parent / ".log")[0])


def rewrite(run: Path, old: str, new: str) -> None:
    """Have the run's configuration, and the one its checkpoints were saved under, be of another version."""
    config = run / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new, 1))
    for _, path in folders(run / "checkpoints"):
        manifest = read(path).manifest
        facts = {**manifest.facts, "config": manifest.facts["config"].replace(old, new, 1)}
        (path / MANIFEST_FILE).write_bytes(Manifest(**{**vars(manifest), "facts": facts}).encode())


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(run) if event["event"] == kind]


def told(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints."""
    capsys.readouterr()
    assert main(words) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_keys_that_touch_no_result_pass_an_upgrade_and_are_named(
    finished: Path, run: Path, faces_shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # One that this version does not have, and one that the older version did not.
    rewrite(run, "  run_ahead: -1\n", "  sparkle: 4\n")
    status = told(capsys, "status", str(run))
    assert "checkpoints.sparkle=4" in status
    assert "checkpoints.run_ahead=-1" in status
    for command in ("list", "verify", "show"):
        assert "step-00000010" in told(capsys, "checkpoints", command, str(run))
    said = resume(run, faces_shards)
    assert "checkpoints.sparkle=4" in said
    assert "checkpoints.run_ahead=-1" in said
    assert "resume" in said
    (event,) = events(run, "version")
    assert "checkpoints.sparkle=4" in " ".join(event["notes"])
    assert final_files(run, 12) == final_files(finished, 12)
    assert "sparkle" not in (run / "config.yaml").read_text()


def test_checkpoints_of_the_format_before_go_on_bitwise(finished: Path, run: Path, faces_shards: str) -> None:
    for _, path in folders(run / "checkpoints"):
        manifest = read(path).manifest
        facts = dict(manifest.facts)
        facts["optimizers"] = {side: facts.pop(f"{side}.optimizer") for side in ("completion", "discriminator")}
        changed = Manifest(**{**vars(manifest), "facts": facts, "format": "glci-checkpoint-3"})
        (path / MANIFEST_FILE).write_bytes(changed.encode())
    assert "resume" in resume(run, faces_shards)
    assert final_files(run, 12) == final_files(finished, 12)


def test_others_are_refused_by_their_names_until_they_are_accepted(
    finished: Path, run: Path, faces_shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(run, "losses:\n", "losses:\n  sparkle: 0.5\n")
    said = resume(run, faces_shards)
    assert "losses.sparkle: 0.5 / (no such key in this version)" in said
    assert "'checkpoints.accept=[losses.sparkle]'" in said
    assert "\n" not in said.strip()
    assert "sparkle" in (run / "config.yaml").read_text()
    words = ("--data", faces_shards, "--photos", "4", "--batch", "4", "--resamples", "0")
    assert "losses.sparkle=0.5" in told(capsys, "evaluate", f"{run}@8", *words)
    said = resume(run, faces_shards, "checkpoints.accept=[losses.sparkle]")
    assert "resume" in said
    assert final_files(run, 12) == final_files(finished, 12)
    # From a checkpoint of the older version, once the folder's own file is of this one, by the same way.
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    assert "step-00000010 belongs to another configuration" in resume(run, faces_shards)
    overrides = ("cluster=local", *small(faces_shards, run.parent, steps=STEPS))
    said = told(capsys, "explain", *overrides, code=2)
    assert f"it would be refused: {run}/checkpoints/step-00000010 belongs to another configuration" in said
    assert "resume" in resume(run, faces_shards, "checkpoints.accept=[losses]")


def test_a_manifest_of_a_newer_version_is_one_line_and_stands_as_it_was(
    run: Path, faces_shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints" / "step-00000010" / MANIFEST_FILE
    path.write_text(path.read_text().replace("glci-checkpoint-4", "glci-checkpoint-8"))
    said = resume(run, faces_shards)
    assert said.strip().count("\n") == 0
    assert "is of the format glci-checkpoint-8" in said
    assert "is of the format glci-checkpoint-8" in told(capsys, "checkpoints", "verify", str(run), code=2)
    assert "saved up to step 8" in told(capsys, "status", str(run))
    assert path.exists()


BAD = ("absent", "binary", "broken", "directory", "empty", "journal", "list", "text")


def test_a_listing_names_what_it_cannot_tell_and_goes_on(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    for name in (*BAD, "half", "other", "zebra"):
        shutil.copytree(finished, runs / name, ignore=shutil.ignore_patterns("vectors*", "tensorboard"))
    for name in ("absent", "broken", "directory"):
        (runs / name / "config.yaml").unlink()
    (runs / "binary" / "config.yaml").write_bytes(bytes(range(256)))
    (runs / "broken" / "config.yaml").symlink_to("nowhere")
    (runs / "directory" / "config.yaml").mkdir()
    (runs / "empty" / "config.yaml").write_bytes(b"")
    shutil.rmtree(runs / "half" / "attempts")
    (runs / "journal" / "journal.jsonl").unlink()
    (runs / "journal" / "journal.jsonl").mkdir()
    (runs / "list" / "config.yaml").write_text("- 1\n")
    (runs / "text" / "config.yaml").write_text("{{{")
    (runs / "other" / "attempts" / "0001" / "alive.json").write_text('{"step": "many", "colour": "red", "seconds": 3}')
    (runs / "other" / "attempts" / "0001.json").write_text('{"time": null, "hosts": "one", "ranks": [2]}')
    with (runs / "other" / "journal.jsonl").open("a") as file:
        file.write('{"event": "danced", "step": null, "time": 3}\n{"event": "rollback", "step": 3, "time": 1e9}\n')
    (runs / "nothing").mkdir()
    (runs / "gone").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    listed = told(capsys, "status").splitlines()
    found = {line.partition("  ")[0].removeprefix("runs/"): line for line in listed}
    assert sorted(found) == sorted(path.name for path in runs.iterdir())
    assert {name for name, line in found.items() if "step 12 of 12" in line} == {"other", "zebra"}
    for name, line in found.items():
        if name not in ("other", "zebra"):
            assert f"cannot be told about: runs/{name}" in line
            assert not any(raw in line for raw in ("[Errno", "codec", "Error"))
            one = told(capsys, "status", f"runs/{name}", code=2)
            assert one.count("\n") == 1
            assert one.startswith("glci: error: ")
    records = json.loads(told(capsys, "status", "--json"))
    assert records["zebra"]["state"] == "done"
    assert "error" in records["empty"]
    # A folder of runs by another name is told in the same way.
    monkeypatch.chdir(runs)
    elsewhere = told(capsys, "status", "../runs").replace("../runs/", "runs/").splitlines()
    assert elsewhere == listed
    assert json.loads(told(capsys, "status", ".", "--json")).keys() == records.keys()
    assert "is no run's folder" in told(capsys, "status", str(tmp_path), code=2)


def test_what_is_saved_is_what_is_there(run: Path, faces_shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    # That of step 12 was deleted by hand.
    status = told(capsys, "status", str(run))
    assert "the checkpoint of step 12 is not there any more" in status
    assert "the newest that stands is of step 10" in status
    assert json.loads(told(capsys, "status", str(run), "--json"))["saved"] == 10
    (run / "checkpoints" / "step-00000010" / MANIFEST_FILE).unlink()
    status = told(capsys, "status", str(run))
    assert "the newest that stands is of step 8" in status
    assert f"step-00000010 is damaged ({MANIFEST_FILE} is missing)" in status
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    said = resume(run, faces_shards)
    assert "step-00000012 is not there any more: the run goes on from step 8" in said
    assert events(run, "missing")[0]["checkpoint"] == "step-00000012"
    for _, path in folders(run / "checkpoints"):
        (path / MANIFEST_FILE).rename(path / "aside")
    status = told(capsys, "status", str(run))
    assert "none stands, and the run does not start until they are mended or removed" in status
    for _, path in folders(run / "checkpoints"):
        shutil.rmtree(path)
    status = told(capsys, "status", str(run))
    assert "is not there any more: none stands, the run would start anew" in status
    assert "the newest that stands" not in status
    assert "is not there any more: the run begins at step 0" in resume(run, faces_shards)


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        (
            (14, 2, 2),
            "step 10 was in phase joint (step 0 of 2), is in phase completion (step 10 of 14) now, 4 steps to go",
        ),
        ((4, 2, 9), "is in phase joint (step 4 of 9) now, 5 steps to go"),
        ((8, 2, 5), "step 10 is in phase joint (step 0 of 5) as before, with 5 steps to go in it where 2 were"),
        ((4, 2, 2), "lies at or beyond the end of the 8 steps now: no step is left to run"),
    ],
)
def test_where_changed_phases_put_a_run_is_said_before_it_starts(
    run: Path, faces_shards: str, capsys: pytest.CaptureFixture[str], steps: tuple[int, int, int], line: str
) -> None:
    overrides = small(faces_shards, run.parent, steps=steps, extra=("checkpoints.accept=[phases]", "cluster=local"))
    assert line in told(capsys, "explain", *overrides, code=2 if sum(steps) < 10 else 0)
    said = resume(run, faces_shards, "checkpoints.accept=[phases]", steps=steps)
    assert line in said
    assert said.index(line) < said.index("is complete" if sum(steps) < 10 else "resume ")
    (moved,) = events(run, "moved")
    assert line in " ".join(moved["moves"])
    journal = [event["event"] for event in read_journal(run) if event["attempt"] == 2]
    assert journal.index("moved") < journal.index("end" if sum(steps) < 10 else "running")


def test_a_shortened_schedule_is_reckoned_by_what_was_run_within_it(
    finished: Path, faces_shards: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "runs" / "run"))
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    # An attempt that begins beyond the end of the schedule below.
    assert "resume" in resume(run, faces_shards)
    shorter = small(faces_shards, run.parent, steps=(4, 2, 2), extra=("checkpoints.accept=[phases]", "cluster=local"))
    said = told(capsys, "explain", *shorter, code=2)
    # By the first attempt, as far as it lies within.
    assert " img/s of 32 px (measured" in said
    assert "it would be refused" in said
    assert "time       0.0 h at 50 img/s of 32 px (given)" in told(
        capsys, "explain", "--images-per-second=50", *shorter, code=2
    )
    assert "0 is no speed: give a number above 0" in told_by_the_parser(capsys, "explain", "--images-per-second=0")


def told_by_the_parser(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main(words)
    return capsys.readouterr().err


def test_the_groups_of_batch_norm_may_be_others_from_a_step_on_if_that_is_accepted(
    finished: Path, run: Path, faces_shards: str
) -> None:
    said = resume(run, faces_shards, "model.batch_norm.group=2")
    assert "model.batch_norm.group: 0 / 2" in said
    assert "'checkpoints.accept=[model.batch_norm.group]'" in said
    assert "resume" in resume(
        run, faces_shards, "model.batch_norm.group=2", "checkpoints.accept=[model.batch_norm.group]"
    )
    assert final_files(run, 12) != final_files(finished, 12)
