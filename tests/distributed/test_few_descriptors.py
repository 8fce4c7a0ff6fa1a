"""Too few open files, or no way to the network: one line says which limit it is, and what to set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.journal import read_journal
from tests.small_run import small
from tests.worlds import free_port, launcher_environment

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
STEPS = (2, 0, 0)


def _ranks(
    overrides: list[str], limits: list[int], environment: dict[str, str] | None = None
) -> list[tuple[int | None, str]]:
    """Exit code and output of each rank of one world once the last ended; ``limits`` on open files (0: as it is)."""
    port = free_port()
    ranks = []
    for rank, limit in enumerate(limits):
        before = f"ulimit -n {limit} && " if limit else ""
        variables = {**os.environ, **launcher_environment(rank, len(limits), port), **(environment or {})}
        ranks.append(
            subprocess.Popen(
                ["bash", "-c", f'{before}exec "$0" -m glci_dist train "$@"', sys.executable, *overrides],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        ranks[-1].wait(60)
    finally:
        # The others may wait for the one that has ended, for which a launcher would end them.
        for each in ranks:
            each.kill()
    return [(each.wait(), each.communicate()[0]) for each in ranks]


@pytest.mark.parametrize("limit", [14, 16, 17, 18, 20, 22])
def test_one_process_with_too_few_says_so_and_how_many_it_has(faces_shards: str, tmp_path: Path, limit: int) -> None:
    ((code, said),) = _ranks(small(faces_shards, tmp_path, steps=STEPS), [limit])
    assert code == 2, said
    assert "Traceback" not in said
    assert "another rank" not in said
    line = said.strip().splitlines()[-1]
    assert line.startswith("glci: error: ")
    assert "Too many open files" in line
    assert f"{limit} now (ulimit -n 1024" in line


@pytest.mark.parametrize("limit", [16, 20])
def test_of_two_ranks_the_one_with_too_few_says_so(faces_shards: str, tmp_path: Path, limit: int) -> None:
    (code, said) = _ranks(small(faces_shards, tmp_path, steps=STEPS), [0, limit])[-1]
    assert code == 2, said
    assert "Traceback" not in said
    assert f"{limit} now (ulimit -n 1024" in said.strip().splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_ending_is_in_the_journal_of_one_that_can_open_no_more(
    faces_shards: str, tmp_path: Path, workers: int
) -> None:
    overrides = small(faces_shards, tmp_path, steps=STEPS, extra=(f"data.workers={workers}",))
    ((code, said),) = _ranks(overrides, [24])
    assert code == 2, said
    line = said.strip().splitlines()[-1]
    assert "24 now (ulimit -n 1024" in line
    assert "/dev/shm" not in line
    last = read_journal(tmp_path / "run")[-1]
    assert last["event"] == "failed"
    assert last["reason"] in line


def test_a_network_interface_that_is_not_there_is_named(faces_shards: str, tmp_path: Path) -> None:
    ((code, said),) = _ranks(small(faces_shards, tmp_path, steps=STEPS), [0], {"GLOO_SOCKET_IFNAME": "nosuch"})
    assert code == 2, said
    assert "Traceback" not in said
    assert "GLOO_SOCKET_IFNAME=nosuch: rank 0 of 1 on " in said
    assert "unset it" in said
