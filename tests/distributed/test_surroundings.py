"""What shells, terminals and launchers do to a run: readers that leave, ignored signals, srun, mpirun, deepspeed."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from glci_dist.cli import main
from glci_dist.runs.ledger import account
from tests.small_run import newest_in, small
from tests.worlds import free_port, launcher_environment

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
GLCI = (sys.executable, "-m", "glci_dist")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
STEPS = (6, 2, 2)


def _run(shards: str, runs: Path, *extra: str, steps: tuple[int, int, int] = STEPS) -> list[str]:
    return ["train", *small(shards, runs, steps=steps, extra=("monitor.progress=true", *extra))]


@contextmanager
def _started(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command none of whose processes outlives the block."""
    process = subprocess.Popen(command, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _without_launchers() -> dict[str, str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {**{name: text for name, text in os.environ.items() if name not in names}, "OMP_NUM_THREADS": "1"}


def _events(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (runs / "run" / "journal.jsonl").read_text().splitlines()]


def _ended_well(runs: Path) -> bool:
    saved = newest_in(runs / "run" / "checkpoints")
    return saved is not None and saved.step == sum(STEPS) and account(runs / "run").attempts[-1].state == "done"


def test_a_run_goes_on_to_its_end_whatever_becomes_of_what_it_prints(faces_shards: str, tmp_path: Path) -> None:
    ways = {
        "left": ('"$@" | head -n 1', "Broken pipe"),
        "closed": ('exec "$@" <&- >&- 2>&-', "it was closed when the command began"),
        "full": ('exec "$@" > /dev/full 2>&1', "No space left on device"),
    }
    # These inherit the streams.
    workers = ("data.workers=1",)
    ours, theirs = pty.openpty()
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                _started(
                    *(
                        "bash",
                        "-o",
                        "pipefail",
                        "-c",
                        line,
                        "bash",
                        *GLCI,
                        *_run(faces_shards, tmp_path / name, *workers),
                    ),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )
            for name, (line, _) in ways.items()
        }
        terminal = _run(faces_shards, tmp_path / "terminal")
        processes["terminal"] = stack.enter_context(_started(*GLCI, *terminal, stdout=theirs, stderr=theirs))
        os.close(theirs)
        os.close(ours)
        codes = {name: process.wait(200) for name, process in processes.items()}
        assert codes == dict.fromkeys(processes, 0)
        assert processes["left"].stdout is not None
        assert processes["left"].stdout.read().startswith("start ")
        assert processes["left"].stderr is not None
        assert processes["left"].stderr.read().count("stdout cannot be written (Broken pipe); training goes on") == 1
    for name, reason in [*((name, reason) for name, (_, reason) in ways.items()), ("terminal", "Input/output error")]:
        assert _ended_well(tmp_path / name), name
        events = _events(tmp_path / name)
        assert events[-1]["event"] == "end"
        told = [(event["stream"], event["reason"]) for event in events if event["event"] == "not-printed"]
        assert ("stdout", reason) in told, name
        assert len(told) == len(set(told)) <= 2
    # An evaluation writes its report all the same.
    measure = (*GLCI, "evaluate", str(tmp_path / "left" / "run"), "--data", faces_shards, "--photos", "4")
    with _started("bash", "-o", "pipefail", "-c", '"$@" 2>&1 | true', "bash", *measure, "--resamples", "0") as process:
        assert process.wait(100) == 0
    assert json.loads((tmp_path / "left" / "run" / "evaluation" / "evaluation.json").read_text())


def test_two_ranks_whose_reader_leaves_go_on_to_their_end(faces_shards: str, tmp_path: Path) -> None:
    command = (*TORCHRUN, "-m", "glci_dist", *_run(faces_shards, tmp_path))
    with _started("bash", "-o", "pipefail", "-c", '"$@" 2>&1 | true', "bash", *command) as process:
        assert process.wait(200) == 0
    assert _ended_well(tmp_path)


def test_what_the_parent_ignored_stays_ignored_and_other_signals_stop_the_run(
    faces_shards: str, tmp_path: Path
) -> None:
    overrides = _run(faces_shards, tmp_path, "data.workers=1", steps=(2000, 0, 0))
    with (
        (tmp_path / "log").open("w") as log,
        _started("sh", "-c", 'trap "" HUP USR1 INT; exec "$@"', "sh", *GLCI, *overrides, stdout=log, stderr=log) as run,
    ):
        _wait_for(tmp_path / "log", "completion: step 1/")
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGINT):
            os.killpg(run.pid, number)
        begun = _reached(tmp_path)
        while _reached(tmp_path) < begun + 20:
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        assert run.wait(100) == 3
    (told,) = (event for event in _events(tmp_path) if event["event"] == "signal")
    assert told["signals"] == ["SIGTERM"]


def test_torchrun_under_nohup_goes_on_where_it_is_told_not_to_answer_the_terminals_end(
    faces_shards: str, tmp_path: Path
) -> None:
    # As README.md says it.
    own = ("nohup", *TORCHRUN, "--signals-to-handle", "SIGTERM,SIGINT,SIGQUIT", "-m", "glci_dist")
    overrides = _run(faces_shards, tmp_path, steps=(2000, 0, 0))
    with (tmp_path / "log").open("w") as log, _started(*own, *overrides, stdout=log, stderr=log) as run:
        _wait_for(tmp_path / "log", "completion: step 1/")
        ranks = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
        for pid in (run.pid, *ranks):
            os.kill(pid, signal.SIGHUP)
        begun = _reached(tmp_path)
        while _reached(tmp_path) < begun + 20:
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        run.wait(100)
    (told,) = (event for event in _events(tmp_path) if event["event"] == "signal")
    assert set(told["signals"]) == {"SIGTERM"}


def _wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 150
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def _reached(runs: Path) -> int:
    return account(runs / "run").attempts[-1].reached


def _of_mpirun(rank: int, size: int) -> dict[str, str]:
    world = {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(size)}
    return {**world, "OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": str(size)}


def _of_hydra(rank: int, size: int) -> dict[str, str]:
    return {"PMI_RANK": str(rank), "PMI_SIZE": str(size), "MPI_LOCALRANKID": str(rank), "MPI_LOCALNRANKS": str(size)}


def _of_srun(rank: int, size: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_NTASKS": str(size),
        "SLURM_STEP_ID": "1",
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


def _all(variables: list[dict[str, str]], *command: str) -> list[tuple[int, str, str]]:
    """The same command in one process a rank: exit code, stdout, stderr."""
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                _started(
                    *GLCI, *command, env=_without_launchers() | each, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
            for each in variables
        ]
        said = [rank.communicate(timeout=200) for rank in ranks]
        return [(rank.returncode, *each) for rank, each in zip(ranks, said, strict=True)]


@pytest.mark.parametrize("of", [_of_mpirun, _of_hydra, _of_srun])
def test_the_ranks_of_mpirun_and_srun_make_one_world(faces_shards: str, tmp_path: Path, of: Any) -> None:
    variables = [of(rank, 2) for rank in range(2)]
    found = _all(variables, *_run(faces_shards, tmp_path))
    assert [code for code, _, _ in found] == [0, 0], found
    assert "attempt 1, 2 rank(s)" in found[0][1]
    assert found[1][1] == ""
    assert _ended_well(tmp_path)
    assert len(account(tmp_path / "run").attempts) == 1
    if of is not _of_srun:
        return
    # So do those of an evaluation; what is for one process is not done by two.
    evaluation = ("evaluate", str(tmp_path / "run"), "--data", faces_shards, "--photos", "8", "--resamples", "0")
    measured, other = _all(variables, *evaluation)
    assert (measured[0], other) == (0, (0, "", "")), measured
    assert measured[1].count("written: ") == 1
    shown, other = _all(variables, "status", str(tmp_path / "run"))
    assert (shown[0], shown[1].count("goodput"), other) == (0, 1, (0, "", ""))
    refused, other = _all(variables, "shards", "build", faces_shards, str(tmp_path / "shards"))
    assert (refused[0], other) == (2, (2, "", ""))
    assert refused[2].startswith("glci: error: this command is for one process, and srun started 2")
    assert not (tmp_path / "shards").exists()


def test_deepspeeds_launcher_makes_one_world(faces_shards: str, tmp_path: Path) -> None:
    own = (str(Path(sys.executable).with_name("deepspeed")), "--num_gpus=2", f"--master_port={free_port()}", "--module")
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        _started(
            *own, "glci_dist", *_run(faces_shards, tmp_path), env=_without_launchers(), stdout=file, stderr=file
        ) as process,
    ):
        assert process.wait(250) == 0, log.read_text()
    assert "attempt 1, 2 rank(s)" in log.read_text()
    assert _ended_well(tmp_path)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs mpirun")
def test_a_real_mpirun_makes_one_world(faces_shards: str, tmp_path: Path) -> None:
    own = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }
    command = ("mpirun", "-n", "2", *GLCI, *_run(faces_shards, tmp_path))
    with _started(*command, env=_without_launchers() | own, stdout=subprocess.PIPE) as process:
        said, _ = process.communicate(timeout=250)
        assert process.returncode == 0
    assert said.count("attempt 1, 2 rank(s)") == 1
    assert _ended_well(tmp_path)


def test_ranks_of_one_world_that_were_given_different_runs_are_refused(faces_shards: str, tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                _started(
                    *GLCI,
                    *_run(faces_shards, tmp_path, f"name=seed{rank}", f"seed={rank}"),
                    env=_without_launchers() | launcher_environment(rank, 2, port),
                    stderr=subprocess.PIPE,
                )
            )
            for rank in range(2)
        ]
        said = [rank.communicate(timeout=100)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [2, 2]
    assert "ranks 0 and 1 of one world were given different runs (name: seed0 / seed1; seed: 0 / 1)" in said[0]
    assert said[1] == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "words", "said"),
    [
        ({"RANK": "1"}, [], "RANK=1 is set, but WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, [], "WORLD_SIZE=2 is set, but RANK is not"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, [], "MASTER_ADDR is not set"),
        (
            {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
            [],
            "RANK=2 is no rank of WORLD_SIZE=2",
        ),
        ({"RANK": "a", "WORLD_SIZE": "2"}, [], "RANK=a is no whole number"),
        (
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"},
            [],
            "mpirun (Open MPI) started 2 ranks, OMPI_COMM_WORLD_LOCAL_SIZE does not say how many of them on this host",
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
            [],
            "mpirun (Open MPI) started 2 ranks on several",
        ),
        ({}, ["--local_rank=1"], "--local-rank=1, but no launcher's variables are there"),
    ],
)
def test_variables_that_make_no_world_are_one_line_and_leave_no_run(
    faces_shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.setattr(os, "environ", _without_launchers() | variables)
    assert main([*words, *_run(faces_shards, tmp_path)]) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("glci: error: ")
    assert said in stderr
    assert stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_RANK=1 is set, but OMPI_COMM_WORLD_SIZE is not"),
        ({"SLURM_PROCID": "1", "RANK": "0"}, "RANK=0 is set, but WORLD_SIZE is not"),
        ({"PMI_RANK": "1", "PMI_SIZE": "x"}, "PMI_SIZE=x is no whole number"),
    ],
)
def test_no_process_is_silent_where_the_variables_do_not_say_which_it_is(
    faces_shards: str, tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    evaluation = ("evaluate", str(tmp_path / "run"), "--data", faces_shards)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                _started(
                    *GLCI, *words, env=_without_launchers() | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
            for words in (_run(faces_shards, tmp_path), evaluation)
        ]
        told = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    for stdout, stderr in told:
        assert stdout == ""
        assert stderr.startswith(f"glci: error: {said}")
        assert stderr.count("\n") == 1
    # Nor are they on a mistake in the words.
    ((code, _, stderr),) = _all([variables], "train", "--nonsense")
    assert (code, stderr.count("unrecognized arguments: --nonsense")) == (2, 1)
    assert not list(tmp_path.iterdir())


def test_what_may_be_another_hosts_fault_too_is_said_by_the_rank_that_has_it(faces_shards: str, tmp_path: Path) -> None:
    # One that another rank waits for.
    variables = launcher_environment(1, 2, free_port()) | {"CUDA_VISIBLE_DEVICES": ""}
    ((code, stdout, stderr),) = _all([variables], *_run(faces_shards, tmp_path, "engine.device=cuda"))
    assert (code, stdout) == (2, "")
    assert stderr == "glci: error: engine.device=cuda, but torch sees no GPU here: use engine.device=auto or cpu\n"


@pytest.mark.parametrize(
    ("name", "why"), [("nohost.invalid", "finds no address of MASTER_ADDR="), ("a" * 70, "it is no host's name")]
)
def test_a_host_of_rank_0_that_has_no_address_is_waited_for_and_named(
    faces_shards: str, tmp_path: Path, name: str, why: str
) -> None:
    variables = launcher_environment(1, 2, free_port()) | {"MASTER_ADDR": name}
    ((code, stdout, stderr),) = _all([variables], *_run(faces_shards, tmp_path, "engine.timeout_s=1"))
    assert (code, stdout) == (2, "")
    assert why in stderr
    assert f"glci: error: MASTER_ADDR={name}: rank 1 of 2 (by torchrun) on " in stderr
    assert "c10d" not in stderr


def test_the_variables_of_a_machine_make_no_process_silent(faces_shards: str, tmp_path: Path) -> None:
    # In a container that has RANK and WORLD_SIZE for all that runs in it, there is no other process to say it.
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ((code, stdout, stderr),) = _all([variables], *_run(faces_shards, tmp_path, "global_bach=4"))
    assert (code, stdout) == (2, "")
    assert stderr.startswith("glci: error: global_bach is no configuration key")


def test_variables_that_are_empty_make_a_run_no_rank(faces_shards: str, tmp_path: Path) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    ((code, stdout, stderr),) = _all([dict.fromkeys(names, "")], *_run(faces_shards, tmp_path))
    assert code == 0, stderr
    assert "attempt 1, 1 rank(s)" in stdout
    assert _ended_well(tmp_path)
