"""The copy of the code that a job runs: the package, and what of the user's the configuration names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from glci_dist import compose
from glci_dist.slurm import snapshot
from tests.extending.test_extending import MINE


def test_a_copy_of_the_code_is_made_once_and_another_one_only_of_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(MINE))
    config = compose.load(["data.shards=x", "losses.terms.edges._target_=edges.EdgeLoss"])
    yaml = tmp_path / "mine"
    (yaml / "experiment").mkdir(parents=True)
    (yaml / "experiment" / "mine.yaml").write_text("name: mine\n")
    (yaml / "experiment" / "photo.jpg").write_bytes(b"")
    first = snapshot.take(tmp_path, config, [yaml])
    assert snapshot.take(tmp_path, config, [yaml]) == first
    word = snapshot.at_copies(f"hydra.searchpath=[file://{yaml}]", first)
    (copied,) = compose.search_path(word)
    assert copied.is_relative_to(first)
    assert [path.name for path in copied.rglob("*.*")] == ["mine.yaml"]
    assert snapshot.at_copies("seed=1", first) == "seed=1"
    assert (first / "glci_dist" / "cli.py").exists()
    assert (first / "edges.py").read_text() == (MINE / "edges.py").read_text()
    command = [sys.executable, "-c", "import glci_dist.compose as c; print(c.__file__, c.config_folder())"]
    found = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(first)}, capture_output=True, text=True, check=True, cwd="/"
    ).stdout.split()
    assert all(path.startswith(str(first)) for path in found)
    assert list((tmp_path / "code").iterdir()) == [first]
