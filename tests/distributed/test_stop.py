"""A signal to any rank stops all in good order, and the same command completes the run to the bit."""

from __future__ import annotations

import io
import json
import signal
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from safetensors.torch import load

from glci_dist.cli import main
from glci_dist.runs.ledger import account
from tests.commands import started
from tests.small_run import newest_in, small
from tests.worlds import run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
STEPS = (30, 3, 3)
SPEAKING = ("monitor.progress=true",)


def run_command(arguments: list[str]) -> tuple[int, str]:
    """``glci`` with these arguments, in a rank that is there already: its exit code and what it printed."""
    output = io.StringIO()
    with redirect_stdout(output):
        return main(arguments), output.getvalue()


def journal(runs: Path) -> list[tuple[str, int]]:
    lines = (runs / "run" / "journal.jsonl").read_text().splitlines()
    return [(entry["event"], entry["step"]) for entry in map(json.loads, lines)]


def final_networks(runs: Path) -> bytes:
    saved = newest_in(runs / "run" / "checkpoints")
    assert saved is not None
    assert saved.step == sum(STEPS)
    content = (saved.path / "networks.safetensors").read_bytes()
    assert {name.split("/")[0] for name in load(content)} == {"completion", "discriminator", "average"}
    return content


def test_a_signal_to_one_rank_stops_both_and_the_same_command_ends_as_if_undisturbed(
    faces_shards: str, tmp_path: Path
) -> None:
    overrides = small(faces_shards, tmp_path / "stopped", steps=STEPS, extra=SPEAKING)
    with started(overrides, size=2, log=tmp_path / "first") as command:
        command.wait_for("completion: step 1/")
        command.ranks[1].send_signal(signal.SIGUSR1)
        assert command.exit_codes() == [3, 3]
        assert "stopped by SIG" in command.said()
        assert "run the same command again" in command.said()
        assert "Traceback" not in command.said(0) + command.said(1)
    saved = newest_in(tmp_path / "stopped" / "run" / "checkpoints")
    assert saved is not None
    assert 0 < saved.step < STEPS[0]
    before = journal(tmp_path / "stopped")
    assert before == [
        ("start", 0),
        ("phase", 0),
        ("running", 0),
        ("signal", saved.step - 1),
        ("checkpoint", saved.step),
        ("stopped", saved.step),
    ]

    with started(overrides, size=2, log=tmp_path / "second") as command:
        assert command.exit_codes() == [0, 0], command.said()
    after = journal(tmp_path / "stopped")[len(before) :]
    assert after[0] == ("resume", saved.step)
    assert after[-1] == ("end", sum(STEPS))

    run_world(2, run_command, ["train", *small(faces_shards, tmp_path / "undisturbed", steps=STEPS)])
    assert final_networks(tmp_path / "stopped") == final_networks(tmp_path / "undisturbed")

    (code, said), (other_code, _) = run_world(2, run_command, ["train", *overrides])
    assert (code, other_code) == (0, 0)
    assert f"is complete: {sum(STEPS)} steps are done" in said
    assert journal(tmp_path / "stopped")[-2:] == [("resume", sum(STEPS)), after[-1]]
    assert account(tmp_path / "stopped" / "run").attempts[-1].state == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_other_signals_stop_a_single_process_in_the_same_way(
    faces_shards: str, tmp_path: Path, number: signal.Signals
) -> None:
    overrides = small(faces_shards, tmp_path, steps=(300, 0, 0), extra=(*SPEAKING, "data.workers=1"))
    with started(overrides, size=1, log=tmp_path / "log", is_fresh=number == signal.SIGTERM) as command:
        command.wait_for("completion: step 1/")
        command.ranks[0].send_signal(number)
        assert command.exit_codes() == [3]
        assert "stopped by SIG" in command.said()
        assert "Traceback" not in command.said()

    saved = newest_in(tmp_path / "run" / "checkpoints")
    assert saved is not None
    assert 0 < saved.step < 300
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    (told,) = (entry for entry in map(json.loads, lines) if entry["event"] == "signal")
    assert told["signals"] == [number.name]
