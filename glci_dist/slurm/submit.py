"""Putting runs on the cluster: their code and configuration are copied first, then submitit makes the job."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from glci_dist import compose, credentials
from glci_dist.config import Config
from glci_dist.errors import UserError
from glci_dist.rules import world_sizes
from glci_dist.runs.folder import unwritable
from glci_dist.slurm import inherited, jobs, snapshot, sweeps
from glci_dist.slurm.backends.base import Backend, JobHandle, JobRequest, Submitted
from glci_dist.slurm.backends.choice import backend
from glci_dist.slurm.launch import Launch
from glci_dist.urls import without_secrets


@dataclass(frozen=True)
class Request:
    """A run that is to be submitted."""

    config: Config
    overrides: list[str]

    @property
    def run(self) -> Path:
        return (Path(self.config.runs) / self.config.name).absolute()

    @property
    def backend(self) -> Backend:
        """Where it is to run. Raises ``UserError`` where that is no backend."""
        return backend(self.config.cluster.executor)

    def job(self, code: str = "<digest>") -> JobRequest:
        """The job that it is asked for as; ``code``: its copy of the code, which may not be made yet."""
        return JobRequest(self.config.cluster, self.config.name, self.run / "code" / code, self.run / "jobs")


def requests(overrides: Sequence[str]) -> list[Request]:
    """A run for each combination of the values of overrides such as ``seed=1,2``; one, without any.

    The runs of a sweep are named after what differs. Raises ``UserError``.
    """
    for word in overrides:
        _refuse_secrets(word)
    snapshot.check()
    choices = [sweeps.values(word) for word in overrides]
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
            # Hydra reads an = in a value only in quotes.
            chosen.append(f"name='{name}-{''.join(c if c.isalnum() or c in '.=-' else '_' for c in suffix)}'")
        made.append(Request(compose.load(chosen), chosen))
    runs = [request.run for request in made]
    for run in runs:
        if runs.count(run) > 1:
            raise UserError(f"the sweep has {run} twice: leave a value out, or write it so that names differ")
    return made


def submit(wanted: Sequence[Request]) -> list[tuple[Submitted, JobHandle]]:
    """Submit the runs, several as one job array; what was submitted, in their order. Raises ``UserError``.

    What ``refusals`` tells is to be asked before.
    """
    launches, codes = [], []
    chosen = wanted[0].backend
    with ExitStack() as held:
        for request in wanted:
            try:
                held.enter_context(_alone(request.run, chosen))
                folders = [each for word in request.overrides for each in compose.search_path(word)]
                codes.append(snapshot.take(request.run, request.config, folders))
            except OSError as error:
                raise unwritable(request.run, error) from error
            launches.append(launch(request, codes[-1]))
        with inherited.applied(chosen.left_out):
            made = chosen.submit(launches, wanted[0].job(codes[0].name))
        return [
            (_record(request, code, handle), handle) for request, code, handle in zip(wanted, codes, made, strict=True)
        ]


@contextmanager
def _alone(run: Path, chosen: Backend) -> Iterator[None]:
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
        jobs.check_idle(run, chosen)
        yield


def launch(request: Request, code: Path) -> Launch:
    """What the job calls on each of its nodes; ``code``: the copy that it runs."""
    config, cluster, chosen = request.config, request.config.cluster, request.backend
    cluster = replace(cluster, environment={**chosen.environment(cluster), **cluster.environment})
    words = [*(snapshot.at_copies(word, code) for word in request.overrides), *chosen.overrides(config)]
    return Launch(words, request.run, world_sizes(config), cluster)


def _record(request: Request, code: Path, handle: JobHandle) -> Submitted:
    (request.run / "jobs" / "config.yaml").write_text(compose.to_yaml(request.config), encoding="utf-8")
    made = Submitted(
        job=handle.job,
        executor=request.config.cluster.executor,
        time=round(time.time(), 3),
        overrides=request.overrides,
        code=code.name,
        out=str(handle.out),
    )
    jobs.add(request.run, made)
    return made


def _refuse_secrets(word: str) -> None:
    """Raise ``UserError`` for credentials in an override: it would stand in the job's files, which others can read."""
    key, _, value = word.lstrip("+").partition("=")
    credentials.check_override(key, value)
    if not key.startswith("cluster.") and credentials.holds_url_credentials(word):
        raise UserError(
            f"{without_secrets(word)}: a job's files would hold the credentials of this url: keep user and password in "
            f"~/.netrc, or export the url as a variable and submit with {key}='${{oc.env:THE_VARIABLE}}'"
        )
