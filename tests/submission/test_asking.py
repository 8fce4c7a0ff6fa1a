"""What Slurm's programs say where nobody answers, as this was seen of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from glci_dist.errors import UserError
from glci_dist.slurm import scheduler
from glci_dist.slurm.asking import Silence, ask


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("slurm_load_partitions error: Socket timed out on send/recv operation", "it is down or busy"),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", "it is down or busy"),
        # A munge that hangs.
        ("slurm_load_partitions error: Unexpected missing socket error", "it is down or busy"),
        (
            "sbatch: error: Munge encode failed: Failed to access munge/socket\n"
            "sbatch: error: Batch job submission failed: Protocol authentication error",
            "(sh: Munge encode failed: Failed to access munge/socket): munge, which proves who asks, does not",
        ),
    ],
)
def test_no_answer_is_told_from_a_refusal(said: str, told: str) -> None:
    with pytest.raises(Silence, match="the scheduler does not answer") as silence:
        ask(["sh", "-c", f"echo '{said}' >&2; exit 1"])
    assert told in str(silence.value)
    refused = ask(["sh", "-c", "echo 'sbatch: error: Invalid partition name specified' >&2; exit 1"])
    assert "Invalid partition" in refused.stderr


@pytest.fixture
def wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program of the site's around sbatch that prints what it likes, and a queue with one job beside it."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def wrap(printed: str) -> None:
        for name, lines in (("sbatch", f"echo '{printed}'"), ("squeue", f"echo '17|{tmp_path}/job.sh|'")):
            (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
            (tmp_path / name).chmod(0o755)

    return wrap


@pytest.mark.parametrize(("printed", "number"), [("12", "12"), ("12;here", "12"), ("", "17"), ("welcome!", "17")])
def test_the_number_of_a_job_is_what_sbatch_says_or_what_the_queue_has(
    wrapped: Callable[[str], None], tmp_path: Path, printed: str, number: str
) -> None:
    wrapped(printed)
    assert scheduler.submit(tmp_path / "job.sh") == number


def test_a_job_whose_number_nobody_says_is_told(wrapped: Callable[[str], None], tmp_path: Path) -> None:
    wrapped("welcome!")
    with pytest.raises(UserError, match=r"did not print its number \('welcome!'\): look with squeue"):
        scheduler.submit(tmp_path / "another.sh")
