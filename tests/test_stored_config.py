"""A configuration of another version is read as far as it is known, and what is not known is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from glci_dist import compose, stored_config
from glci_dist.config import Config
from glci_dist.errors import UserError
from glci_dist.runs.folder import is_accepted, result_changes


@pytest.fixture(scope="module")
def config() -> Config:
    return compose.load(["data.shards=shards/train", "name=one"])


def written(config: Config, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The configuration as another version would have written it."""
    keys: Any = OmegaConf.to_container(OmegaConf.create(compose.to_yaml(config)))
    change(keys)
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(keys)))
    return path


def test_one_of_this_version_has_nothing_to_be_named(config: Config, tmp_path: Path) -> None:
    found = stored_config.read(written(config, tmp_path / "config.yaml", lambda keys: None))
    assert found.config == config
    assert found.notes() == []
    assert found.changes(config) == []


@pytest.mark.parametrize(
    ("change", "named", "changes"),
    [
        # Gone, and of what touches no result.
        (lambda keys: keys["monitor"].update(chatter=3), "monitor.chatter=3", []),
        (lambda keys: keys["checkpoints"].update(zip=True), "checkpoints.zip=True", []),
        # Gone, and who knows what it did.
        (lambda keys: keys["losses"].update(sparkle=0.5), "losses.sparkle=0.5", ["losses.sparkle"]),
        (lambda keys: keys.update(teacher={"a": 1, "b": [2]}), "teacher.a=1", ["teacher.a", "teacher.b"]),
        (lambda keys: keys["phases"]["joint"].update(warm=2), "phases.joint.warm=2", ["phases.joint.warm"]),
        (
            lambda keys: keys["model"]["completion"].update(depth=3),
            "model.completion.depth=3",
            ["model.completion.depth"],
        ),
        # New, and as before by default.
        (lambda keys: keys["losses"].pop("total_variation"), "losses.total_variation=0.0", []),
        (lambda keys: keys.pop("cluster"), "cluster.executor=slurm", []),
        (lambda keys: keys["monitor"].pop("pictures_every"), "monitor.pictures_every=", []),
        # New, and set to something else than what means "as before".
        (lambda keys: keys.pop("global_batch") and keys.update(seed=0), "global_batch=32", []),
        (lambda keys: keys["phases"]["joint"].pop("alpha"), "phases.joint.alpha=0.0", ["phases.joint.alpha"]),
        (lambda keys: keys["engine"].pop("ema"), "engine.ema=", []),
        # A value that has another type now.
        (lambda keys: keys.update(global_batch="many"), "global_batch=many", ["global_batch"]),
        (lambda keys: keys["monitor"].update(pictures="some"), "monitor.pictures=some", []),
        (lambda keys: keys.update(doctor=3), "doctor=3", ["doctor"]),
    ],
)
def test_a_key_more_or_less_is_named_and_only_what_may_touch_the_result_asks_to_be_accepted(
    config: Config, tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str, changes: list[str]
) -> None:
    found = stored_config.read(written(config, tmp_path / "config.yaml", change))
    assert any(named in note for note in found.notes()), found.notes()
    asked = result_changes(found, config)
    assert [line.partition(":")[0] for line in asked] == changes
    assert all(is_accepted(line, changes) for line in asked)
    assert not any(is_accepted(line, []) for line in asked)


def test_a_choice_that_this_version_does_not_have_is_a_difference(config: Config, tmp_path: Path) -> None:
    path = written(config, tmp_path / "config.yaml", lambda keys: keys["losses"].update(adversarial="softmax"))
    assert result_changes(stored_config.read(path), config) == ["losses.adversarial: softmax / non_saturating"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"{}", "empty"),
        (b"- 1\n", "is no configuration"),
        (b"name: [", "is no configuration"),
        (b"\xff\xfe\x00", "no text"),
        (b"version: 1\nservices: {a: 1}\n", "none of its keys"),
        (b"name: x\nname: y\n", "duplicate"),
        (b"name: ${nowhere}\n", "nowhere"),
    ],
)
def test_what_is_no_configuration_is_refused_in_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        stored_config.read(path)
    assert str(path) in str(refusal.value)
    assert why in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_so_is_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("folder", "link", "loop", "absent"):
        with pytest.raises(UserError, match=name) as refusal:
            stored_config.read(tmp_path / name)
        assert "\n" not in str(refusal.value)


def test_a_list_in_the_place_of_a_configuration_is_not_called_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is no mapping of keys"):
        stored_config.parse("- 1\n", tmp_path / "config.yaml")
