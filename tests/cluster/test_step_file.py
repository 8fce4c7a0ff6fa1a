"""The step in hand is known of a worker that was killed: no last word of its own is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from glci_dist.cluster.elastic import StepFile, read_step_file


def test_the_last_step_that_was_begun_is_found_by_the_error_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error_file = str(tmp_path / "error.json")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", error_file)
    assert read_step_file(error_file) == -1
    note = StepFile()
    assert read_step_file(error_file) == -1
    for step in (0, 7, 100_000):
        note.write(step)
        assert read_step_file(error_file) == step


def test_without_an_agent_nothing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    StepFile().write(3)
    assert read_step_file("") == -1
