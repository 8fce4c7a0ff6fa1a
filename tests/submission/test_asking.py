"""What Slurm's programs say where nobody answers, as this was seen of them."""

from __future__ import annotations

import pytest

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
