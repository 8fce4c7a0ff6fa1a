"""A loader worker that is killed, or finds no shared memory, costs no step; or the run ends and says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.commands import started
from tests.journal import read_journal
from tests.small_run import final_files, small, train_to_its_end
from tests.worlds import launcher_environment, run_world

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
STEPS = (12, 2, 2)
WORKERS = ("data.workers=2", "monitor.progress=true", "monitor.scalars_every=1")


def loader_workers(rank: int) -> list[psutil.Process]:
    """The workers of a rank's process, and not the servers that they are forked from."""
    return [worker for server in psutil.Process(rank).children() for worker in server.children()]


def test_its_batch_is_made_again_and_the_weights_are_those_of_an_undisturbed_run(
    faces_shards: str, tmp_path: Path
) -> None:
    assert run_world(2, train_to_its_end, small(faces_shards, tmp_path / "undisturbed", steps=STEPS)) == ["", ""]
    overrides = small(faces_shards, tmp_path, steps=STEPS, extra=WORKERS)
    with started(overrides, size=2, log=tmp_path / "log") as command:
        command.wait_for("completion: step 1/")
        killed = loader_workers(command.ranks[1].pid)[0]
        # The server of rank 0's workers, and with it every one of them.
        (server,) = {worker.parent() for worker in loader_workers(command.ranks[0].pid)}
        assert server is not None
        server.kill()
        killed.kill()
        assert command.exit_codes() == [0, 0], command.said(0) + command.said(1)
        said = command.said(0) + command.said(1)
    assert "Traceback" not in said
    assert "a loader worker of rank 1 on " in said
    assert f"(process {killed.pid} was killed by SIGKILL: its machine, container or job was out of memory" in said
    lost = [event for event in read_journal(tmp_path / "run") if event["event"] == "worker-lost"]
    assert sorted(event["rank"] for event in lost) == [0, 1]
    assert final_files(tmp_path / "run", sum(STEPS)) == final_files(tmp_path / "undisturbed" / "run", sum(STEPS))


def limited(overrides: list[str], before: str) -> subprocess.CompletedProcess[str]:
    """`glci train` in a shell that did something ``before``, in a place of its own for mounts."""
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", f'{before} && exec "$0" -m glci_dist train "$@"', sys.executable, *overrides],
        env={**os.environ, **launcher_environment(0, 1, 0), "MASTER_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("mount -t tmpfs -o size=64k tmpfs /dev/shm", ("shared memory", "/dev/shm has 0.0", "--shm-size")),
        ("ulimit -n 40", ("Too many open files", "ulimit -n")),
    ],
    ids=["shared memory", "open files"],
)
def test_without_room_for_workers_one_line_says_what_is_short_and_the_way_out(
    faces_shards: str, tmp_path: Path, before: str, said: tuple[str, ...]
) -> None:
    ended = limited(small(faces_shards, tmp_path, steps=(2, 0, 0), extra=("data.workers=3",)), before)
    assert ended.returncode == 2, ended.stderr
    line = ended.stderr.strip().splitlines()[-1]
    assert line.startswith("glci: error: ")
    assert "data.workers=0" in ended.stderr or "data.workers (0" in line
    for each in said:
        assert each in line
    assert "Traceback" not in ended.stderr
    last = read_journal(tmp_path / "run")[-1]
    assert last["event"] == "failed"
    assert last["reason"] in line


def test_workers_that_are_lost_again_and_again_end_the_run_with_the_cause(faces_shards: str, tmp_path: Path) -> None:
    overrides = small(faces_shards, tmp_path, steps=(3000, 0, 0), extra=WORKERS)
    with started(overrides, size=1, log=tmp_path / "log") as command:
        command.wait_for("completion: step 1/")
        while command.ranks[0].poll() is None:
            # The rank, or a worker, may end between two looks.
            with suppress(psutil.NoSuchProcess):
                for worker in loader_workers(command.ranks[0].pid):
                    worker.send_signal(signal.SIGKILL)
        assert command.exit_codes() == [1], command.said()
        said = command.said()
    assert "Traceback" not in said
    assert "loader workers were lost 3 times in a row" in said
    assert "SIGKILL" in said
    assert "fewer data.workers" in said
    assert read_journal(tmp_path / "run")[-1]["event"] == "failed"
