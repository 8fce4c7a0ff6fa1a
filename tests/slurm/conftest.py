"""A real SLURM cluster for these tests, and a run under torchrun that theirs are compared to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.box import CLUSTER, CONF, STEPS, Box, run_undisturbed
from tests.small_run import build_faces, final_files


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """The cluster, brought up for these tests, or left as it was if it was up already."""
    if os.geteuid() != 0:
        pytest.skip("the cluster in a box needs root")
    was_up = CONF.exists()
    brought_up = subprocess.run([sys.executable, CLUSTER, "up"], capture_output=True, text=True, check=False)
    if "this is no Debian" in brought_up.stderr:
        pytest.skip(f"the cluster in a box cannot run here: {brought_up.stderr.strip()}")
    assert brought_up.returncode == 0, brought_up.stderr
    os.environ["SLURM_CONF"] = str(CONF)
    shards = build_faces(tmp_path_factory.mktemp("faces"), photos=24, samples=6)
    try:
        yield Box(shards)
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
def undisturbed(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run under torchrun, with four workers on this machine."""
    return run_undisturbed(box.shards, tmp_path_factory.mktemp("torchrun"), workers=4)


@pytest.fixture(scope="session")
def expected(undisturbed: Path) -> dict[str, bytes]:
    """Its last checkpoint's files."""
    return final_files(undisturbed, sum(STEPS))


@pytest.fixture(scope="session")
def expected_of_two(box: Box, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same with two workers."""
    return final_files(run_undisturbed(box.shards, tmp_path_factory.mktemp("torchrun"), workers=2), sum(STEPS))
