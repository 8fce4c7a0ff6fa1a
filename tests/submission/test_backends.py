"""Where a run is submitted to is one class of a protocol, and that of a user's own is one file."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import glci_dist
from glci_dist.config import ClusterConfig
from glci_dist.config.fields import rules_of, walk
from glci_dist.errors import UserError
from glci_dist.slurm import jobs
from glci_dist.slurm.backends.choice import NAMED, backend
from glci_dist.slurm.jobs import Submitted
from glci_dist.slurm.run_status import read_status
from tests.small_run import newest_in, small

_PACKAGE = Path(glci_dist.__file__).parent
_GUIDE = (_PACKAGE.parent / "docs" / "slurm.md").read_text()
_DETACHED = _GUIDE.partition("```python\n")[2].partition("```")[0]
"""Jobs that are plain processes of this machine, as the guide shows it."""

_QUEUE = '''\
"""A scheduler with one job, which waits."""

from glci_dist.slurm.backends.base import Scheduled
from glci_dist.slurm.backends.scheduling import Queued


class Line:
    CANCEL = "leave-line"

    def is_there(self):
        return True

    def queued(self, job):
        return Queued("PENDING", "Resources", "", "N/A", 2)

    def history(self, job, *, since):
        return []

    def jobs_of(self, folder):
        return ["7", "8"]

    lost_nodes = warning = refusal = requeue = exclude = cancel = None


class Queue(Scheduled):
    scheduler = Line()

    def submit(self, launches, request):
        return []

    def allocation(self, folder):
        return None


class Broken(Queue):
    scheduler = object()
'''

_ODD = """\
from glci_dist.slurm.backends.base import Backend

number = 1


class Half(Backend):
    def submit(self, launches, request):
        return []


class Alone:
    def submit(self, launches, request):
        return []


class Asking(Backend):
    def __init__(self, where):
        pass

    submit = is_alive = cancel = None
"""


@pytest.fixture
def launchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python looks into, here and in commands, with launchers that the package knows nothing of."""
    folder = tmp_path / "launchers"
    folder.mkdir()
    raising = "raise OSError('no\\nway')"
    for name, text in (("own", _DETACHED), ("queueing", _QUEUE), ("odd", _ODD), ("raising", raising)):
        (folder / f"my_{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def glci(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glci_dist", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def state(run: Path) -> str:
    done = glci("status", str(run), "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["state"])


@pytest.mark.distributed
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("launchers")
def test_a_run_is_launched_by_a_class_of_ones_own(faces_shards: str, tmp_path: Path) -> None:
    run, words = tmp_path / "run", ["cluster=local", "cluster.executor=my_own.Detached"]
    submitted = glci("submit", *words, *small(faces_shards, tmp_path, steps=(4000, 0, 0)))
    assert submitted.returncode == 0, submitted.stderr
    (job,) = jobs.submitted(run)
    assert f"job {job.job} (my_own.Detached): {run}" in submitted.stdout
    assert state(run) == "starting"
    deadline = time.monotonic() + 100
    while read_status(run).state != "running":
        assert time.monotonic() < deadline, Path(job.out).read_text()
    again = glci("submit", *words, *small(faces_shards, tmp_path, steps=(4000, 0, 0)))
    assert again.returncode == 2
    assert f"{run} has job {job.job} in the queue already" in again.stderr
    assert f"job {job.job} of {run} is cancelled" in glci("cancel", str(run)).stdout
    while jobs.active(run):
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.1)
    assert state(run) == "stopped"
    saved = newest_in(run / "checkpoints")
    assert saved is not None
    assert saved.manifest.world_size == 2
    assert "Traceback" not in Path(job.out).read_text()


@pytest.mark.distributed
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("launchers")
def test_the_output_of_such_a_run_is_followed_to_its_end(faces_shards: str, tmp_path: Path) -> None:
    words = ["cluster=local", "cluster.executor=my_own.Detached", *small(faces_shards, tmp_path, steps=(4, 1, 1))]
    done = glci("submit", *words, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": RUNNING\n" in done.stdout
    assert "2 rank(s)" in done.stdout
    assert ": ENDED\n" in done.stdout
    assert state(tmp_path / "run") == "done"


@pytest.mark.usefixtures("launchers")
def test_a_scheduler_of_ones_own_says_how_a_run_stands(tmp_path: Path) -> None:
    run, chosen = tmp_path / "run", backend("my_queueing.Queue")
    (run / "jobs").mkdir(parents=True)
    jobs.add(run, Submitted("7", "my_queueing.Queue", time.time(), [], "code", str(run / "jobs" / "out")))
    assert [job.job for job in jobs.active(run)] == ["7"]
    outlook = read_status(run)
    assert (outlook.state, outlook.detail) == ("queued", "job 7 waits (Resources)")
    assert [number for _, number in jobs.unnoted(run, chosen)] == ["8"]
    (run / "jobs" / "submitted.jsonl").unlink()
    with pytest.raises(UserError, match=r"has job 7 in the queue .*: leave-line 7"):
        jobs.check_idle(run, chosen)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("pbs", "is not known: choose one of slurm, local, debug, or the dotted path of a class of your own"),
        ("my..Flux", "is not known: choose one of slurm, local, debug, or the dotted path of a class of your own"),
        ("nowhere.Flux", "cannot be imported (ModuleNotFoundError: No module named 'nowhere'): choose one of slurm"),
        ("my_own.Flux", "cannot be imported (AttributeError: module 'my_own' has no attribute 'Flux')"),
        ("my_raising.Flux", "cannot be imported (OSError: no)"),
        ("my_odd.number", "is no class"),
        ("my_odd.Half", "lacks is_alive, cancel: glci_dist/slurm/backends/base.py says"),
        ("my_odd.Alone", "lacks left_out, counts, is_followed, scheduler, is_alive, cancel, refusals"),
        ("my_odd.Asking", "cannot be made"),
        ("my_queueing.Broken", ".scheduler lacks is_there, queued, history"),
    ],
)
@pytest.mark.usefixtures("launchers")
def test_what_launches_nothing_is_refused_in_one_line_before_anything_starts(
    path: str, said: str, tmp_path: Path
) -> None:
    words = ["data.shards=shards/train", "name=run", f"runs={tmp_path}/runs", f"cluster.executor={path}"]
    done = glci("submit", *words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f"cluster.executor={path}" in line
    assert said in line
    assert not (tmp_path / "runs").exists()


def test_of_a_job_whose_class_is_gone_the_runs_folder_is_still_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "jobs").mkdir(parents=True)
    jobs.add(run, Submitted("7", "nowhere.Flux", time.time(), [], "code", str(run / "jobs" / "out")))
    outlook = read_status(run)
    assert outlook.state == "submitted"
    assert outlook.detail.startswith("job 7: cluster.executor=nowhere.Flux cannot be imported")


def test_the_names_that_are_chosen_among_are_those_that_there_are() -> None:
    (rule,) = rules_of(dict(walk(ClusterConfig))["executor"])
    assert tuple(NAMED) == rule.choices
    assert [type(backend(name)) for name in NAMED] == list(NAMED.values())


def _decides_by_name(tree: ast.AST) -> Iterator[str]:
    """What compares an executor with a name, or looks it up by one."""
    sides: list[ast.AST]
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            sides = [node.subject, *(case.pattern for case in node.cases)]
        elif isinstance(node, ast.Subscript):
            sides = [node.slice, node.value]
        else:
            continue
        of_executor = [side for side in sides if ast.unparse(side).endswith("executor")]
        others = [side for side in sides if side not in of_executor]
        words = [each for side in others for each in ast.walk(side) if isinstance(each, ast.Constant)]
        if of_executor and any(isinstance(each.value, str) for each in words):
            yield ast.unparse(node)


def test_no_module_but_the_backends_decides_by_an_executors_name() -> None:
    found = {
        str(path.relative_to(_PACKAGE)): decided
        for path in _PACKAGE.rglob("*.py")
        if "backends" not in path.parts and (decided := list(_decides_by_name(ast.parse(path.read_text()))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "cluster.executor == 'slurm'",
        "'local' != job.executor",
        "executor in ('slurm', 'local')",
        "{'slurm': 1}[executor]",
    ],
)
def test_such_a_decision_is_seen(text: str) -> None:
    assert list(_decides_by_name(ast.parse(text)))
