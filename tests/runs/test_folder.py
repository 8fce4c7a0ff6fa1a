"""A run's folder belongs to one configuration, and its journal is one JSON object a line."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from glci_dist import compose, stored_config
from glci_dist.config import Config
from glci_dist.errors import Superseded, UserError
from glci_dist.runs import attempts
from glci_dist.runs.folder import RunFolder


@functools.cache
def configuration(*overrides: str) -> Config:
    return compose.load(["~tuning", "data.shards=shards/train", *overrides])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A folder that the plain configuration has claimed."""
    made = RunFolder(tmp_path / "runs" / "one")
    made.begin_attempt(configuration(), "corpus", ranks=1)
    return made


def test_a_claim_writes_the_resolved_configuration_and_makes_the_rooms(folder: RunFolder) -> None:
    assert stored_config.read(folder.config_file).config == configuration()
    for room in (folder.checkpoints, folder.tensorboard, folder.pictures):
        assert room.is_dir()


def test_the_same_configuration_may_take_it_again_and_is_the_next_attempt(folder: RunFolder) -> None:
    attempt, changes = folder.begin_attempt(configuration(), "corpus", ranks=2)
    assert (attempt.number, changes) == (2, [])


def test_what_a_kill_right_after_the_lease_leaves_is_the_run_s_folder(tmp_path: Path) -> None:
    attempts.begin(tmp_path, ranks=1)
    folder = RunFolder(tmp_path)
    assert not folder.config_file.exists()
    attempt, _ = folder.begin_attempt(configuration(), "corpus", ranks=1)
    assert attempt.number == 2
    assert stored_config.read(folder.config_file).config == configuration()


def test_an_attempt_that_was_superseded_does_not_write_its_configuration(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = folder.check

    def check(*args: Any) -> list[str]:
        # Another one begins while this one is between its lease and the configuration.
        monkeypatch.setattr(folder, "check", real)
        folder.begin_attempt(configuration("monitor.scalars_every=2"), "corpus", ranks=1)
        return real(*args)

    monkeypatch.setattr(folder, "check", check)
    with pytest.raises(Superseded):
        folder.begin_attempt(configuration("monitor.scalars_every=7"), "corpus", ranks=1)
    assert stored_config.read(folder.config_file).config.monitor.scalars_every == 2


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("seed=7", "seed: 0 / 7"),
        ("phases.joint.alpha=1e-3", "phases.joint.alpha: 0.0004 / 0.001"),
        ("data.shards=elsewhere", "data.shards: shards/train / elsewhere"),
        ("engine.precision=fp32", "engine.precision: bf16 / fp32"),
        ("model.completion.width=0.25", "model.completion.width: 0.5 / 0.25"),
    ],
)
def test_another_configuration_is_refused_in_one_line_that_names_the_keys(
    folder: RunFolder, override: str, named: str
) -> None:
    before = folder.config_file.read_bytes()
    with pytest.raises(UserError) as refusal:
        folder.check(configuration(override), "corpus")

    message = str(refusal.value)
    assert named in message
    assert str(folder.path) in message
    assert "choose another name=" in message
    assert "\n" not in message
    assert folder.config_file.read_bytes() == before


def test_of_many_differing_keys_three_are_named_and_the_rest_counted(folder: RunFolder) -> None:
    overrides = ("seed=7", "global_batch=64", "data.flip=false", "engine.ema=0.9", "engine.gradient_clip=1")
    with pytest.raises(UserError, match=r"seed: 0 / 7; global_batch: 32 / 64; .*\(and 2 more\)"):
        folder.check(configuration(*overrides), "corpus")


def test_keys_that_do_not_touch_the_result_may_change(tmp_path: Path) -> None:
    # With Muon there is one ZeRO stage alone.
    adam = "optimizers.completion.kind=adam"
    folder = RunFolder(tmp_path / "run")
    folder.begin_attempt(configuration(adam), "corpus", ranks=1)
    free = configuration(
        adam,
        "runs=elsewhere",
        "monitor.scalars_every=3",
        "monitor.progress=false",
        "data.cache.dir=/somewhere",
        "data.workers=3",
        "data.prefetch=2",
        "engine.threads=1",
        "engine.timeout_s=60",
        "engine.zero_stage=1",
        "checkpoints.every=7",
    )
    folder.begin_attempt(free, "corpus", ranks=1)

    assert stored_config.read(folder.config_file).config == free != configuration(adam)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is no run's folder"):
        RunFolder(tmp_path).check(configuration(), "corpus")

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_broken_configuration_is_told_with_the_way_out_which_is_one(folder: RunFolder) -> None:
    folder.config_file.write_text("")
    folder.journal.touch()
    with pytest.raises(UserError, match="it is empty; mend it, or remove it and start the run with the configuration"):
        folder.check(configuration(), "corpus")
    folder.config_file.unlink()
    assert folder.check(configuration(), "corpus") == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").begin_attempt(configuration(), "corpus", ranks=1)


def test_a_change_that_the_user_accepts_passes_and_is_told(folder: RunFolder) -> None:
    changed = configuration("global_batch=64", "phases.joint.alpha=1e-3", "checkpoints.accept=[global_batch,phases]")
    assert folder.begin_attempt(changed, "corpus", ranks=1)[1] == [
        "global_batch: 32 / 64",
        "phases.joint.alpha: 0.0004 / 0.001",
    ]
    assert stored_config.read(folder.config_file).config == changed


def test_other_shards_pass_where_the_user_accepts_them(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"to go on all the same: 'checkpoints\.accept=\[data\.shards\]'"):
        folder.check(configuration(), "another corpus")
    accepting = configuration("checkpoints.accept=[data.shards]")
    assert len(folder.check(accepting, "another corpus")) == 1


@pytest.mark.parametrize(
    "override", ["model.completion.width=0.25", "data.size=60", "optimizers.completion.kind=adadelta"]
)
def test_what_the_saved_tensors_hang_on_is_never_accepted(folder: RunFolder, override: str) -> None:
    key = override.split("=")[0]
    with pytest.raises(UserError, match=key) as refusal:
        folder.check(configuration(override, f"checkpoints.accept=[{key}]"), "corpus")
    assert "to go on all the same" not in str(refusal.value)
