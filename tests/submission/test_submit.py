"""What a submission asks for, and the whole way of one where there is no scheduler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from glci_dist import compose, stored_config
from glci_dist.checkpoints.manifest import MANIFEST_FILE
from glci_dist.data.index import load_index
from glci_dist.errors import Fault, UserError
from glci_dist.rules import world_sizes
from glci_dist.runs.folder import RunFolder
from glci_dist.runs.ledger import account
from glci_dist.slurm.jobs import active
from glci_dist.slurm.node_launcher import samples_of, usable_nodes
from glci_dist.slurm.notes import Notes
from glci_dist.slurm.preflight import refusals, standing
from glci_dist.slurm.requeue import JobStart
from glci_dist.slurm.submit import Request, requests, submit
from tests.checkpoints.saves import saver, state
from tests.small_run import newest_in, small

PLAIN = ["data.shards=shards/train", "name=run"]


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_a_run_submitted_to_this_machine_is_followed_to_its_end(faces_shards: str, tmp_path: Path) -> None:
    words = ["cluster=local", *small(faces_shards, tmp_path, steps=(4, 1, 1))]
    command = [sys.executable, "-m", "glci_dist", "submit", *words, "--wait"]
    # From a shell inside an allocation, or a container's.
    shell = {
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": "5",
        "SLURM_NTASKS": "9",
        "SUBMITIT_DEBUG_JOB_ID": "9",
        "SUBMITIT_PREEMPT_SIGNAL": "NONE",
        "RANK": "3",
        "WORLD_SIZE": "9",
        "MASTER_ADDR": "nowhere",
        # The job inherits them.
        "HF_TOKEN": "hunter2",
        "FTP_PROXY": "http://me:hunter2@proxy",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=200, env={**os.environ, **shell}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out of the environment, the configuration alone counts: MASTER_ADDR, RANK, SLURM_JOB_ID" in done.stdout
    run = tmp_path / "run"
    (attempt,) = account(run).attempts
    # It is no part of the allocation.
    assert (attempt.job, attempt.restart) == ("", 0)
    assert f"glci status {run}" in done.stdout
    assert "2 rank(s)" in done.stdout
    saved = newest_in(run / "checkpoints")
    assert saved is not None
    assert (saved.step, saved.manifest.world_size) == (6, 2)
    (record,) = map(json.loads, (run / "jobs" / "submitted.jsonl").read_text().splitlines())
    assert record["executor"] == "local"
    assert record["overrides"] == words
    assert not [path for path in run.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_a_run_on_this_machine_is_told_as_it_is_and_cancelled(faces_shards: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    glci("submit", "cluster=local", *small(faces_shards, tmp_path, steps=(4000, 0, 0)))
    assert json.loads(glci("status", str(run), "--json"))["state"] == "starting"
    deadline = time.monotonic() + 100
    while json.loads(glci("status", str(run), "--json"))["state"] != "running":
        assert time.monotonic() < deadline, "it does not run"
    # As by Ctrl-Z: it gives no sign, and is not dead.
    (lease,) = (json.loads(path.read_text()) for path in (run / "attempts").glob("*.json"))
    os.kill(lease["pid"], signal.SIGSTOP)
    while f"process {lease['pid']} stands still (Ctrl-Z?)" not in glci("status", str(run)):
        assert time.monotonic() < deadline, "it is not told"
    os.kill(lease["pid"], signal.SIGCONT)
    assert "is cancelled" in glci("cancel", str(run))
    while active(run):
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.1)
    status = json.loads(glci("status", str(run), "--json"))
    assert status["state"] == "stopped"
    assert status["attempts"][0]["reason"].startswith("stopped by SIGTERM")
    assert newest_in(run / "checkpoints") is not None
    assert "has ended already" in glci("cancel", str(run))
    (log,) = (run / "jobs").glob("*log.err")
    assert "Traceback" not in log.read_text()


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_a_job_of_this_machine_ignores_what_its_submission_did_and_answers_what_it_did_not(
    faces_shards: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["cluster=local", *small(faces_shards, tmp_path, steps=(4000, 0, 0))]
    # A submission whose output is closed submits all the same.
    shell = ["sh", "-c", 'trap "" HUP; exec "$@" <&- >&- 2>&-', "sh"]
    command = [*shell, sys.executable, "-m", "glci_dist", "submit", *words]
    subprocess.run(command, check=True, timeout=100)
    deadline = time.monotonic() + 150

    def wait_for_step(step: int) -> None:
        while not (attempts := account(run).attempts) or attempts[-1].reached < step:
            assert time.monotonic() < deadline, f"never came to step {step}"
            time.sleep(0.1)

    wait_for_step(1)
    (launcher,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if "submitit.core._submit" in (process.info["cmdline"] or []) and str(run / "jobs") in process.info["cmdline"]
    )
    launcher.send_signal(signal.SIGHUP)
    for rank in launcher.children():
        rank.send_signal(signal.SIGHUP)
    wait_for_step(account(run).attempts[-1].reached + 5)
    launcher.send_signal(signal.SIGINT)
    while active(run):
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.1)
    assert account(run).attempts[-1].reason.startswith("stopped by SIGINT")
    assert newest_in(run / "checkpoints") is not None


def glci(*words: str) -> str:
    """What the command prints, which has to do."""
    command = [sys.executable, "-m", "glci_dist", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout


def test_values_with_commas_between_them_are_a_sweep_and_each_run_has_its_name() -> None:
    made = requests([*PLAIN, "seed=1,2", "phases.joint.alpha=4e-4,1e-3", "data.short_edge=[64,71]"])
    assert [(r.config.name, r.config.seed, r.config.phases["joint"].alpha) for r in made] == [
        ("run-seed=1_phases.joint.alpha=4e-4", 1, 4e-4),
        ("run-seed=1_phases.joint.alpha=1e-3", 1, 1e-3),
        ("run-seed=2_phases.joint.alpha=4e-4", 2, 4e-4),
        ("run-seed=2_phases.joint.alpha=1e-3", 2, 1e-3),
    ]
    assert {tuple(r.config.data.short_edge) for r in made} == {(64, 71)}


def test_without_a_sweep_there_is_one_run_as_it_is_named() -> None:
    (made,) = requests(PLAIN)
    assert (made.config.name, made.overrides) == ("run", PLAIN)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster.partition=main,high"], "write a list as \"cluster.partition='main,high'\""),
        (["cluster.executor=pbs"], "cluster.executor=pbs is not known"),
        (["cluster.partiton=main"], "did you mean cluster.partition"),
        (["cluster.sbatch={wckey: [a]}"], "cluster.sbatch.wckey=['a'] has the wrong type"),
        (["cluster.sbatch=foo"], "cluster.sbatch=foo has the wrong type"),
        (["cluster.sbatches={wckey: a}"], "did you mean cluster.sbatch"),
        (["seed=1,1"], "the sweep has"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as refusal:
        requests([*PLAIN, *words])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["cluster.sbatch={wckey: foo}"], {"wckey": "foo"}),
        (["cluster.sbatch.wckey=foo"], {"wckey": "foo"}),
        (["+cluster.sbatch.wckey=foo"], {"wckey": "foo"}),
        (["++cluster.sbatch={wckey: foo}"], {"wckey": "foo"}),
        (["cluster.sbatch.mail-type=END", "cluster.sbatch.nice=7"], {"mail-type": "END", "nice": "7"}),
        (["cluster.sbatch={exclusive: true, comment: null}"], {"exclusive": "True", "comment": None}),
    ],
)
def test_options_of_sbatch_have_keys_of_their_own_with_and_without_a_plus(
    words: list[str], options: dict[str, str | None]
) -> None:
    (made,) = requests([*PLAIN, "cluster=box", *words])
    assert made.config.cluster.sbatch == options
    assert stored_config.parse(compose.to_yaml(made.config), Path("config.yaml")).config == made.config


def test_variables_of_the_workers_are_added_without_a_plus_and_taken_out_by_null() -> None:
    (made,) = requests([*PLAIN, "cluster=box", "cluster.environment={NCCL_DEBUG: INFO, OMP_NUM_THREADS: null}"])
    assert made.config.cluster.environment == {
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": None,
        "NCCL_DEBUG": "INFO",
    }


@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_of_submissions_of_a_run_at_the_same_time_one_is_taken(faces_shards: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glci_dist", "submit", "cluster=local"]
    command += small(faces_shards, tmp_path, steps=(4000, 0, 0))
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(process.communicate(timeout=200)[1], process.returncode) for process in started]
    glci("cancel", str(tmp_path / "run"))
    assert sorted(code for _, code in ends) == [0, 2, 2]
    for said in (said for said, code in ends if code):
        assert "is under way: see `glci status" in said or "in the queue already: see `glci status`" in said
    assert len((tmp_path / "run" / "jobs" / "submitted.jsonl").read_text().splitlines()) == 1
    deadline = time.monotonic() + 100
    while active(tmp_path / "run"):
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.1)


def test_what_stands_in_a_runs_way_is_named_without_advice_to_make_room(well: list[str], tmp_path: Path) -> None:
    (tmp_path / "run" / "jobs").mkdir(parents=True)
    (tmp_path / "run" / "jobs" / ".submitting").mkdir()
    with pytest.raises(UserError) as told:
        submit(requests(well))
    what = tmp_path / "run" / "jobs" / ".submitting"
    assert str(told.value).endswith(f"cannot be written: Is a directory ({what}): choose another runs=...")


@pytest.fixture
def well(faces_shards: str, tmp_path: Path) -> list[str]:
    """What would be taken, by this machine."""
    return ["cluster=local", *small(faces_shards, tmp_path, steps=(4, 1, 1))]


def test_all_that_stands_against_a_submission_is_said_at_once(well: list[str], tmp_path: Path) -> None:
    assert refusals(requests(well)) == []
    shards = tmp_path / "nowhere"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    found = refusals(requests([*well, "cluster.gpus=8", "cluster.min_nodes=3", f"data.val={shards}"]))
    assert [reason.split(":")[0] for reason in found] == [
        "cluster.min_nodes=3 is more than cluster.nodes=1",
        "cluster.workers=2 ranks on cluster.gpus=8 GPUs of a node",
        "cluster.gpus=8 is more than there are here (0)",
        f"{tmp_path}/run exists and is no run's folder",
        "no shards",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster=slurm", "cluster.time_min=1", "cluster.signal_lead_s=60"], "leaves nothing of cluster.time_min=1"),
        (["cluster=slurm", "cluster.sbatch={ntasks: 4}"], "cluster.sbatch.ntasks=4: its launchers are one task a node"),
        (["cluster=slurm", "cluster.sbatch={--ntasks_per_node: 4}"], "one task a node"),
        (["cluster=slurm", "cluster.sbatch={array: 0-3}"], "cluster.sbatch.array=0-3: a run is one job"),
        (["cluster=slurm", "cluster.sbatch={test-only: true}"], "sbatch submits nothing"),
        (["cluster=slurm", "cluster.sbatch={wrap: foo}"], "the batch script is the run's"),
        (["cluster=slurm", "cluster.nodes=5"], "do not share the global batch evenly"),
        (["cluster.nodes=2", "cluster.workers=1"], "cluster.nodes=2 with cluster.executor=local"),
        (["name='of 100%'"], "SLURM puts a job's number in the place of a % there"),
        (
            ["model.completion.kind=context_encoder", "data.size=36", "data.short_edge=[36,36]"],
            "data.size=36 cannot be halved down to at most 8",
        ),
        (["holes.max_side=99"], "holes.max_side=99 is larger than the photo (data.size=32)"),
        (["data.shards=nowhere"], "no shards: nowhere is no folder"),
        (["cluster.reserved_port=65000"], "cluster.reserved_port=65000 leaves no 1000 ports up to 65535"),
    ],
)
def test_what_cannot_be_is_refused(well: list[str], words: list[str], said: str) -> None:
    assert any(said in reason for reason in refusals(requests([*well, *words])))


def test_a_run_of_another_configuration_is_refused(well: list[str], tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").begin_attempt(requests(well)[0].config, load_index(_shards(well)).digest, ranks=2)
    assert refusals(requests(well)) == []
    (reason,) = refusals(requests([*well, "seed=9"]))
    assert f"{tmp_path}/run belongs to another configuration (there / here): seed: 0 / 9" in reason


def test_of_a_sweep_that_is_submitted_again_only_what_is_missing_is_asked_for(well: list[str], tmp_path: Path) -> None:
    both = [*well, "seed=1,2"]
    for request in requests(both):
        RunFolder(request.run).begin_attempt(request.config, load_index(_shards(well)).digest, ranks=2)
        _save(request, 6)
    complete = ["run-seed=1 is complete (step 6)", "run-seed=2 is complete (step 6)"]
    told = glci("submit", *both)
    assert "nothing is submitted" in told
    told += glci("explain", *well, "seed=1,2,3")
    assert [told.count(f"{tmp_path}/{line}: it is not submitted again") for line in complete] == [2, 2]
    assert f"run        {tmp_path}/run-seed=3" in told
    assert told.count("it would be taken") == 1
    # One run alone is asked for by its name.
    (reason,) = refusals(requests([*well, "seed=1", "name='run-seed=1'"]))
    assert "is complete (step 6), there is nothing to do" in reason


def test_a_run_is_complete_by_what_stands_of_its_checkpoints_and_not_by_their_names(
    well: list[str], tmp_path: Path
) -> None:
    (request,) = requests(well)
    RunFolder(request.run).begin_attempt(request.config, load_index(_shards(well)).digest, ranks=2)
    _save(request, 4)
    # Damaged, and what a deletion that was interrupted leaves.
    _save(request, 6)
    (request.run / "checkpoints" / "step-00000006" / MANIFEST_FILE).unlink()
    (request.run / "checkpoints" / "step-00000008").mkdir()
    assert standing(request) is None
    assert refusals([request]) == []
    # Without one that stands it would not start.
    (request.run / "checkpoints" / "step-00000004" / MANIFEST_FILE).unlink()
    (said,) = refusals([request])
    assert said.startswith(f"none of the 3 checkpoint(s) in {request.run}/checkpoints stands (step-00000008: ")


def test_starts_that_bring_no_checkpoint_that_stands_are_idle(well: list[str], tmp_path: Path) -> None:
    few = ("cluster.executor=slurm", "cluster.idle_starts=1", "cluster.node_timeout_s=1")
    (request,) = requests([*well, *few])
    _save(request, 4)
    (request.run / "checkpoints" / "step-00000006").mkdir()
    (request.run / "jobs").mkdir()
    Notes(request.run, "7", 0, "n1").again(step=4, why="its time was over", warning="")
    start = JobStart(request.run, "7", 1, "n1", request.config.cluster)
    with pytest.raises(Fault, match="1 starts in a row brought no checkpoint after step 4"):
        start.queue_again("its time was over", asks=True)


def _save(request: Request, step: int) -> None:
    """Have a checkpoint stand that the run could go on from."""
    with saver(request.run) as made:
        made_of = state(step)
        facts = {**made_of.extra_state, "config": compose.to_yaml(request.config)}
        made.save(replace(made_of, extra_state=facts), step=step, phase="joint", ends_phase=False)


def _shards(words: list[str]) -> str:
    return next(word for word in words if word.startswith("data.shards=")).removeprefix("data.shards=")


def test_without_a_scheduler_submitting_says_what_to_do_and_leaves_nothing(tmp_path: Path) -> None:
    words = ["cluster=slurm", *PLAIN, f"runs={tmp_path}"]
    command = [sys.executable, "-m", "glci_dist", "submit", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": "/nowhere"}, timeout=100
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "cluster.executor=local" in line
    assert "make slurm-up" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "nodes", "least", "there", "used"),
    [
        ((), 4, 1, 4, 4),
        ((), 4, 1, 3, 2),
        ((), 4, 2, 2, 2),
        ((), 4, 1, 9, 4),
        (("engine.accumulation=16", "model.batch_norm.group=0"), 4, 1, 4, 2),
        # 4 ranks hold 24 slots each.
        (("~tuning", "global_batch=96", "model.batch_norm.group=16"), 4, 1, 4, 3),
    ],
)
def test_of_the_nodes_that_are_there_the_most_that_share_the_batch_evenly_are_used(
    overrides: tuple[str, ...], nodes: int, least: int, there: int, used: int
) -> None:
    config = compose.load([*PLAIN, *overrides, f"cluster.nodes={nodes}", f"cluster.min_nodes={least}"])
    assert usable_nodes(world_sizes(config), config.cluster, there) == used


def test_too_few_nodes_are_refused() -> None:
    cluster = compose.load([*PLAIN, "cluster.nodes=4", "cluster.min_nodes=3"]).cluster
    with pytest.raises(UserError, match="fewer nodes down to 3"):
        usable_nodes([1, 2, 4], cluster, 2)


def test_the_samples_of_a_step_are_those_that_the_run_reads_there(faces_shards: str, tmp_path: Path) -> None:
    words = small(faces_shards, tmp_path, steps=(4, 0, 0))
    found = [samples_of(words, step) for step in (0, 1)]
    assert [len(keys) for keys in found] == [4, 4]
    assert not set(found[0]) & set(found[1])
    assert samples_of(words, -1) == []
