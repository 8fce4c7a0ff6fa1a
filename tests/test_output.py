"""What is printed is no part of what a command does: whatever becomes of it, the command does its work."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glci_dist.data.index import load_index

Opened = Callable[[], tuple[int, Callable[[], None]]]


def _broken_pipe() -> tuple[int, Callable[[], None]]:
    reader, writer = os.pipe()
    os.close(reader)
    return writer, lambda: None


def _full_disk() -> tuple[int, Callable[[], None]]:
    return os.open("/dev/full", os.O_WRONLY), lambda: None


def _closed_terminal() -> tuple[int, Callable[[], None]]:
    ours, theirs = pty.openpty()
    os.close(ours)
    return theirs, lambda: None


def _stuck_reader() -> tuple[int, Callable[[], None]]:
    reader, writer = os.pipe()
    return writer, lambda: os.close(reader)


_PRINTS = """
import json, logging, os, subprocess, sys, warnings
from pathlib import Path
from glci_dist import output

output.take_over()
output.wait_at_most(0.3)
for number in range(3):
    print("a line of some length " * 2000, flush=True)
    print("another", file=sys.stderr)
    logging.error("of a library")
    warnings.warn(f"number {number}")
    # A child waits by itself for a reader that is only stuck.
    os.system(sys.argv[2])
with open(sys.argv[1], "w") as file:
    # Nothing that is opened takes the number of a standard stream.
    assert file.fileno() > 2
    losses = {loss.stream: loss.reason for loss in output.take_losses()}
    json.dump([losses, [loss.stream for loss in output.take_losses()], sys.stdin.read()], file)
"""


@pytest.mark.parametrize(
    ("opened", "reason"),
    [
        (_broken_pipe, "Broken pipe"),
        (_full_disk, "No space left on device"),
        (_closed_terminal, "Input/output error"),
        (_stuck_reader, "its reader takes nothing for 0.3 s"),
        (None, "it was closed when the command began"),
    ],
)
def test_whatever_becomes_of_what_is_printed_nothing_ends_and_it_is_told_once(
    tmp_path: Path, opened: Opened | None, reason: str
) -> None:
    child = "true" if opened is _stuck_reader else "echo of a child; echo of a child >&2"
    command = [sys.executable, "-c", _PRINTS, str(tmp_path / "found.json"), child]
    if opened is None:
        ended = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], timeout=60, check=False)
    else:
        stream, close = opened()
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, timeout=60, check=False)
        os.close(stream)
        close()
    losses, again, read = json.loads((tmp_path / "found.json").read_text())
    assert losses == {"stdout": reason, "stderr": reason}
    assert again == []
    assert read == ""
    assert ended.returncode == 0


def test_a_slow_reader_of_a_pipe_that_does_not_block_gets_everything() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, fcntl.fcntl(writer, fcntl.F_GETFL) | os.O_NONBLOCK)
    script = (
        "from glci_dist import output; output.take_over(); print('0123456789' * 100_000); print(output.lost('stdout'))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=writer)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    assert said == "0123456789" * 100_000 + "\nNone\n"
    assert process.wait(60) == 0


@pytest.mark.parametrize("flags", [[], ["-u"]])
def test_a_name_that_the_output_cannot_spell_is_shown_by_its_numbers(flags: list[str]) -> None:
    script = "from glci_dist import output; output.take_over(); print('caf\\xe9 \\udcff')"
    for encoding in ("ascii", "utf-8", "latin-1"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        ended = subprocess.run(
            [sys.executable, *flags, "-c", script], env=environment, capture_output=True, timeout=60, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, b"")
        e = b"\\xe9" if encoding == "ascii" else "é".encode(encoding)
        assert ended.stdout == b"caf" + e + b" \\udcff\n"


def _shell(line: str) -> subprocess.CompletedProcess[str]:
    """A line for bash, in which ``glci`` is the command."""
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; glci() {{ "{sys.executable}" -m glci_dist "$@"; }}; {line}'],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize("command", ["config data.shards=x", "--help", "train --help"])
def test_a_reader_that_leaves_or_a_closed_output_is_no_failure(command: str) -> None:
    for line in (f"glci {command} | head -n 1", f"glci {command} | true", f"glci {command} >&-"):
        ended = _shell(line)
        assert (ended.returncode, ended.stderr) == (0, ""), line


@pytest.mark.parametrize("command", ["config data.shards=x", "--help"])
def test_a_command_whose_product_is_its_output_fails_in_one_line_where_that_is_lost(command: str) -> None:
    ended = _shell(f"glci {command} > /dev/full")
    assert ended.returncode == 2
    assert ended.stderr.startswith("glci: error: what it printed could not all be written (No space left on device)")
    assert ended.stderr.count("\n") == 1


def test_a_mistake_has_its_exit_code_also_where_it_cannot_be_said() -> None:
    for way in ("2>&-", ">&- 2>&-", "2> /dev/full", "2>&1 | true"):
        assert _shell(f"glci train data.shards=x nonsense=1 {way}").returncode == 2, way
        assert _shell(f"glci trian {way}").returncode == 2, way


def test_a_command_that_does_work_does_it_whatever_becomes_of_its_output(tmp_path: Path) -> None:
    _shell(f"glci demo-corpus {tmp_path}/demo --train 6 --val 2 --size 32 --processes 1 > /dev/null")
    photos = f"{tmp_path}/demo/train"
    for number, way in enumerate(("2>&1 | true", ">&- 2>&-", "> /dev/full 2>&1")):
        tar = next((tmp_path / "demo" / "train").glob("*.tar"))
        ended = _shell(f"glci shards build {tar} {tmp_path}/{number} --processes 1 {way}")
        assert ended.returncode == 0, (way, ended.stderr)
        assert load_index(str(tmp_path / str(number))).total == load_index(photos).total == 6
        assert _shell(f"glci shards show {photos} --out {tmp_path}/{number}.png {way}").returncode == 0, way
        assert (tmp_path / f"{number}.png").exists()


def test_a_thread_may_print_while_another_one_loses_its_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    script = (
        "import sys, threading; from glci_dist import output; output.take_over()\n"
        "def say():\n    for number in range(1000): print(number, flush=True)\n"
        "threads = [threading.Thread(target=say) for _ in range(8)]\n"
        "[each.start() for each in threads]; [each.join() for each in threads]\n"
        "print(len(output.take_losses()), threading.active_count(), file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"1 1\n")


def test_what_was_lost_of_a_command_that_did_its_work_is_a_note() -> None:
    ended = _shell(
        f'"{sys.executable}" -c "from glci_dist import output, cli; output.take_over(); print(1); '
        'raise SystemExit(cli.told(0, is_product=False))" > /dev/full'
    )
    assert ended.returncode == 0
    assert ended.stderr.startswith("glci: note: what it printed could not all be written (No space left on device)")
