"""Figures of Slurm's programs are read as it writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from glci_dist.slurm.aftermath import first_killed
from glci_dist.slurm.capacity import gpus, minutes


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("UNLIMITED", None),
        ("", None),
        ("30", 30),
        ("30:00", 30),
        ("01:30:00", 90),
        ("2-00:00:00", 2880),
        ("1-12", 2160),
        ("0-30", 1800),
        ("00:00:30", 0.5),
    ],
)
def test_a_time_limit_is_read_in_minutes(limit: str, expected: float | None) -> None:
    assert minutes(limit) == expected


@pytest.mark.parametrize(
    ("resources", "expected"),
    [("gpu:8", 8), ("gpu:a100:4(S:0-1)", 4), ("gpu:a100:4,gpu:v100:2", 6), ("(null)", 0), ("gpu_mem:80,gpu:1", 1)],
)
def test_the_gpus_of_a_node_are_counted(resources: str, expected: int) -> None:
    assert gpus(resources) == expected


def test_the_process_that_was_killed_first_is_named_of_this_start_alone(tmp_path: Path) -> None:
    output = tmp_path / "7_0_log.out"
    output.write_text(
        "glci: job 7 starts, restart 0: n[1-2]\nsrun: error: n1: task 0: Killed\n"
        "glci: job 7 starts, restart 1: n[1-2]\nsrun: error: n2: task 1: Segmentation fault\n"
        "srun: error: n1: task 0: Killed\n"
    )
    assert first_killed(output, 139) == "n2 (Segmentation fault)"
    output.write_text("glci: job 7 starts, restart 0: n[1-2]\nsrun: error: n[1-2]: tasks 0-1: Killed\n")
    assert first_killed(output, 137) == "n[1-2] (Killed)"
    assert first_killed(tmp_path / "nowhere", 137) == "srun ended with 137 (signal 9)"
