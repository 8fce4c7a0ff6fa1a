"""Putting runs on the cluster: their code and configuration are copied first, then submitit makes the job."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glci_dist import compose, credentials
from glci_dist.config import ClusterConfig, Config
from glci_dist.errors import UserError
from glci_dist.runs.folder import unwritable
from glci_dist.slurm import executor, inherited, jobs, snapshot
from glci_dist.slurm.jobs import Submitted
from glci_dist.slurm.launch import Launch
from glci_dist.slurm.task import IGNORED
from glci_dist.urls import without_secrets

if TYPE_CHECKING:
    from submitit import Job


@dataclass(frozen=True)
class Request:
    """A run that is to be submitted."""

    config: Config
    overrides: list[str]

    @property
    def run(self) -> Path:
        return (Path(self.config.runs) / self.config.name).absolute()


def requests(overrides: Sequence[str]) -> list[Request]:
    """A run for each combination of the values of overrides such as ``seed=1,2``; one, without any.

    The runs of a sweep are named after what differs. Raises ``UserError``.
    """
    for word in overrides:
        _refuse_secrets(word)
    snapshot.check()
    choices = [_split(word) for word in overrides]
    varied = [number for number, words in enumerate(choices) if len(words) > 1]
    for number in varied:
        key, _, value = overrides[number].lstrip("+").partition("=")
        if key.split(".")[0] == "cluster":
            raise UserError(
                f"{key}={value}: a sweep is one job array, all of whose runs get the same of the cluster; write a list "
                f"as \"{key}='{value}'\", or submit once for each"
            )
    made = []
    for words in product(*choices):
        chosen = list(words)
        if varied:
            suffix = ",".join(words[number] for number in varied)
            name = compose.load(chosen).name
            chosen.append(f"name={name}-{''.join(c if c.isalnum() or c in '.=-' else '_' for c in suffix)}")
            # Hydra reads an = in a value only in quotes.
            chosen[-1] = "name='" + chosen[-1].removeprefix("name=") + "'"
        made.append(Request(compose.load(chosen), chosen))
    runs = [request.run for request in made]
    for request in made:
        if runs.count(request.run) > 1:
            raise UserError(f"the sweep has {request.run} twice: leave a value out, or write it so that names differ")
    return made


def submit(wanted: Sequence[Request]) -> list[tuple[Submitted, Job[str]]]:
    """Submit the runs, several as one job array; what was submitted, in their order. Raises ``UserError``.

    What ``refusals`` tells is to be asked before.
    """
    launches, codes = [], []
    first = wanted[0]
    cluster = first.config.cluster
    with ExitStack() as held:
        for request in wanted:
            try:
                held.enter_context(_alone(request.run, cluster.executor))
                codes.append(snapshot.take(request.run, request.config))
            except OSError as error:
                raise unwritable(request.run, error) from error
            launches.append(launch(request))
        made_by = executor.make(cluster, name=first.config.name, code=codes[0], folder=first.run / "jobs")
        with inherited.applied(cluster.executor), _on_this_machine(codes[0]) if is_here(cluster) else nullcontext():
            made: list[Job[str]] = made_by.submit(launches)
        return [(_record(request, code, job), job) for request, code, job in zip(wanted, codes, made, strict=True)]


@contextmanager
def _alone(run: Path, executor_name: str) -> Iterator[None]:
    """Keep other submissions of the run out, of which one may just have been done. Raises ``UserError`` for these."""
    (run / "jobs").mkdir(parents=True, exist_ok=True)
    with (run / "jobs" / ".submitting").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another `glci submit` of {run} is under way: see `glci status {run}` then") from None
        except OSError as error:
            # Not every file system has locks.
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        jobs.check_idle(run, executor_name)
        yield


def is_here(cluster: ClusterConfig) -> bool:
    """Whether a job is processes of this machine that go on without this one."""
    return cluster.executor == "local"


def batch_script(request: Request) -> str:
    """What sbatch would be given for a run; its copy of the code is not made yet."""
    config, run = request.config, request.run
    made_by = executor.make(config.cluster, name=config.name, code=run / "code" / "<digest>", folder=run / "jobs")
    assert isinstance(made_by, executor.SlurmExecutor)
    return made_by.script()


def launch(request: Request) -> Launch:
    """What the job calls on each of its nodes."""
    config = request.config
    words = [*request.overrides]
    lead = config.cluster.signal_lead_s
    if lead and config.cluster.executor == "slurm":
        # A save that takes longer than the lead is of no use, and what is said of it should be true.
        words.append(f"checkpoints.stop_within_s={min(config.checkpoints.stop_within_s or lead, lead)}")
    cluster = config.cluster
    if is_here(cluster):
        # submitit hides them from its jobs.
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus_here()[: cluster.gpus or None])}
        cluster = replace(cluster, environment={**visible, **cluster.environment})
    return Launch(words, request.run, config.global_batch // config.engine.accumulation, cluster)


def gpus_here() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return list(filter(None, named.split(",")))
    import torch

    return list(map(str, range(torch.cuda.device_count())))


def _record(request: Request, code: Path, job: Any) -> Submitted:
    (request.run / "jobs" / "config.yaml").write_text(compose.to_yaml(request.config), encoding="utf-8")
    made = Submitted(
        job=str(job.job_id),
        executor=request.config.cluster.executor,
        time=round(time.time(), 3),
        overrides=request.overrides,
        code=code.name,
        out=str(job.paths.stdout),
    )
    jobs.add(request.run, made)
    return made


@contextmanager
def _on_this_machine(code: Path) -> Iterator[None]:
    """Have a job's processes, which inherit from this one, run the copy of the code, and not hold its terminal."""
    path = filter(None, [str(code), os.environ.get("PYTHONPATH")])
    # Safe: python -m would look into the current folder first, which may be a checkout.
    terminal = (signal.SIGINT, signal.SIGHUP)
    ignored = " ".join(number.name for number in terminal if signal.getsignal(number) == signal.SIG_IGN)
    inherited = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(path), IGNORED: ignored}
    before = {name: os.environ.get(name) for name in inherited}
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in range(3)]
    nowhere = os.open(os.devnull, os.O_RDWR)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in terminal}
    os.environ.update(inherited)
    for number in range(3):
        os.dup2(nowhere, number)
    try:
        yield
    finally:
        for number, mine in enumerate(kept):
            os.dup2(mine, number)
            os.close(mine)
        os.close(nowhere)
        for which, handler in handlers.items():
            signal.signal(which, handler)
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


def _refuse_secrets(word: str) -> None:
    """Raise ``UserError`` for credentials in an override: it would stand in the job's files, which others can read."""
    key, _, value = word.lstrip("+").partition("=")
    credentials.check_override(key, value)
    if not key.startswith("cluster.") and credentials.holds_url_credentials(word):
        raise UserError(
            f"{without_secrets(word)}: a job's files would hold the credentials of this url: keep user and password in "
            f"~/.netrc, or export the url as a variable and submit with {key}='${{oc.env:THE_VARIABLE}}'"
        )


def _split(word: str) -> list[str]:
    """The overrides that ``key=a,b`` stands for: a comma outside of brackets and quotes separates values."""
    key, equals, value = word.partition("=")
    if not equals:
        return [word]
    parts, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(value):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(value[start:place])
            start = place + 1
    return [f"{key}={part}" for part in [*parts, value[start:]]]
