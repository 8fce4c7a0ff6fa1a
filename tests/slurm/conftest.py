"""A real SLURM cluster for these tests, and a run under torchrun that theirs are compared to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.box import CLUSTER, CONF, STEPS, Box, Undisturbed
from tests.small_run import build_faces, final_files


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of these tests."""
    if os.geteuid() != 0:
        pytest.skip("the cluster in a box needs root")
    return build_faces(tmp_path_factory.mktemp("faces"), photos=24, samples=6)


@pytest.fixture(scope="session")
def beside(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Undisturbed]]:
    """The run that most tests submit, under torchrun, by its number of workers; while the cluster is brought up."""
    runs = {workers: Undisturbed(faces, tmp_path_factory.mktemp("torchrun"), workers=workers) for workers in (2, 4)}
    try:
        yield runs
    finally:
        for run in runs.values():
            run.close()


@pytest.fixture(scope="session")
def box(faces: Path, beside: dict[int, Undisturbed]) -> Iterator[Box]:
    """The cluster, brought up for these tests, or left as it was if it was up already."""
    was_up = CONF.exists()
    brought_up = subprocess.run([sys.executable, CLUSTER, "up"], capture_output=True, text=True, check=False)
    if "this is no Debian" in brought_up.stderr:
        pytest.skip(f"the cluster in a box cannot run here: {brought_up.stderr.strip()}")
    assert brought_up.returncode == 0, brought_up.stderr
    os.environ["SLURM_CONF"] = str(CONF)
    try:
        yield Box(faces)
    finally:
        if not was_up:
            subprocess.run([sys.executable, CLUSTER, "down"], check=True)


@pytest.fixture(autouse=True)
def _mended(box: Box) -> Iterator[None]:
    """Every node up and idle before each test."""
    box.mend()
    yield
    box.clear()


@pytest.fixture(scope="session")
def undisturbed(beside: dict[int, Undisturbed]) -> Path:
    """The folder of the run with four workers."""
    return beside[4].folder()


@pytest.fixture(scope="session")
def expected(undisturbed: Path) -> dict[str, bytes]:
    """Its last checkpoint's files."""
    return final_files(undisturbed, sum(STEPS))


@pytest.fixture(scope="session")
def expected_of_two(beside: dict[int, Undisturbed]) -> dict[str, bytes]:
    """The same with two workers."""
    return final_files(beside[2].folder(), sum(STEPS))
