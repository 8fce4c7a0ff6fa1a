"""`glci status`: what runs are doing, what their attempts did, and where the time went."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glci_dist import stored_config
from glci_dist.config import Config
from glci_dist.errors import UserError
from glci_dist.runs.ledger import AttemptAccount
from glci_dist.slurm.asking import patience
from glci_dist.slurm.pace import in_words, seconds_a_pixel
from glci_dist.slurm.run_status import RunStatus, StartWithoutAttempt, read_status
from glci_dist.stored_config import StoredConfig
from glci_dist.training.phases import Schedule

_MARKS = ("config.yaml", "attempts", "journal.jsonl", "jobs")
"""What a run's folder has, one of them at the least."""

_ANSWER_S = 60.0
"""For how long a scheduler that does not answer is asked again."""
_DESCRIPTION = """\
Each attempt at a run: its job (and which start of it), when, which steps, how many of them had to be run again,
its goodput (the share of its time that became part of the result), how it ended, and where it ran; a job's start
that came to no attempt is told too;
then what the run is doing, from its folder and from the scheduler (running, queued, done, failed, ...), and where
the wall time of all attempts went. compute is the goodput: work that is part of the result.
Without RUN: a line for each folder in runs/, as of any folder of runs that is named; one that cannot be told about is
named with the reason, and the others follow (exit code 0).

  compute        updates that are part of the result
  communication  waiting in collectives for other ranks
  data           waiting for batches
  checkpoint     waiting for copies and for earlier saves
  startup        from a process's start to its first step
  restart        from an attempt's last sign of life to the next one's process
  lost           steps that were run again after a kill or a rollback

examples:
  glci status
  glci status runs/faces64
  glci status other-runs
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `status`."""
    summary = "a run's attempts, its step, and where its time went"
    status = subparsers.add_parser("status", help=summary, description=_DESCRIPTION)
    status.add_argument("folder", metavar="RUN", nargs="?", type=Path, help="the run's folder, or one of runs (runs/)")
    status.add_argument("--json", action="store_true", help="print the same as JSON")
    status.set_defaults(run=_status, is_product=True)


@patience(_ANSWER_S)
def _status(parsed: argparse.Namespace) -> int:
    root = parsed.folder or Path("runs")
    if parsed.folder is None or (not _is_run(root) and any(map(_is_run, _folders(root)))):
        return _all(root, as_json=parsed.json)
    found, outlook = _read(parsed.folder)
    config = found.config
    if parsed.json:
        print(json.dumps(_record(outlook, config), indent=1))
        return 0
    told = lines(outlook, Schedule(config.phases, global_batch=config.global_batch, size=config.data.size))
    print("\n".join([*told, *(f"its configuration has {note}" for note in found.notes())]))
    return 0


def _all(root: Path, *, as_json: bool) -> int:
    folders = _folders(root)
    if not any(map(_is_run, folders)):
        raise UserError(f"no run in {root}/: name a run's folder, or start one with glci train or glci submit")
    records: dict[str, Any] = {}
    for run in folders:
        try:
            found, outlook = _read(run)
            # As a whole, so that what is malformed in it shows here, and not in the middle of a line.
            record = _record(outlook, found.config)
            attempts = outlook.account.attempts
            step = attempts[-1].reached if attempts else 0
            told = "; ".join(filter(None, (outlook.detail, outlook.missing)))
            line = f"{run}  {outlook.state}: step {step} of {_steps(found.config)}" + (f" ({told})" if told else "")
        except UserError as error:
            record, line = {"error": str(error)}, f"{run}  cannot be told about: {error}"
        records[run.name] = record
        if not as_json:
            print(line)
    if as_json:
        print(json.dumps(records, indent=1))
    return 0


def _folders(root: Path) -> list[Path]:
    """What in ``root`` may be a run. Raises ``UserError`` where that cannot be told."""
    try:
        found = sorted(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from error
    return [path for path in found if not path.name.startswith(".") and (path.is_dir() or path.is_symlink())]


def _is_run(path: Path) -> bool:
    return any(os.path.lexists(path / mark) for mark in _MARKS)


def _read(run: Path) -> tuple[StoredConfig, RunStatus]:
    """A run's configuration, and how it stands. Raises ``UserError`` for whatever keeps them from being told."""
    if not run.is_dir():
        raise UserError(f"{run} is no folder: name the folder of a run, such as runs/demo")
    if not _is_run(run):
        raise UserError(f"{run} is no run's folder: it has none of {', '.join(_MARKS)}")
    try:
        return _configuration(run), read_status(run)
    except OSError as error:
        raise UserError(f"{error.filename or run} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # A file of it that somebody edited, or that another version wrote.
        raise UserError(f"{run}: a file in it is malformed ({type(error).__name__}: {error})") from error


def _configuration(run: Path) -> StoredConfig:
    """Of the run's last start, or of its submission if it has not started."""
    started, wanted = run / "config.yaml", run / "jobs" / "config.yaml"
    is_started = os.path.lexists(started)
    if not is_started and not wanted.exists():
        raise UserError(f"{run} has no config.yaml: its first start was ended before it wrote one")
    return stored_config.read(started if is_started else wanted)


def _steps(config: Config) -> int:
    return sum(phase.steps for phase in config.phases.values())


def _record(outlook: RunStatus, config: Config) -> dict[str, Any]:
    return {
        "state": outlook.state,
        "detail": outlook.detail,
        "saved": outlook.saved,
        "missing": outlook.missing,
        "steps": _steps(config),
        "attempts": [asdict(attempt) for attempt in outlook.account.attempts],
        "starts": [asdict(start) for start in outlook.starts],
        "seconds": outlook.account.seconds(),
        "job": asdict(outlook.job) if outlook.job else None,
    }


def lines(outlook: RunStatus, schedule: Schedule) -> list[str]:
    """The status as text."""
    steps, attempts = schedule.steps, outlook.account.attempts
    rows = [(each.began, _attempt(each)) for each in attempts]
    rows += [(each.began, _start(each)) for each in outlook.starts]
    told = [_row("attempt", "job", "ranks", "start", "end", "steps", "lost", "goodput", "ended")]
    told += [row for _, row in sorted(rows)]
    last = attempts[-1] if attempts else None
    now = f"{outlook.state}: step {last.reached if last else 0} of {steps}"
    if outlook.state not in ("running", "done") and last is not None:
        now += f", saved up to step {outlook.saved}" if outlook.saved else ", no step is saved"
    pace = seconds_a_pixel(last, schedule) if last is not None and outlook.state == "running" else None
    if last is not None and pace is not None:
        left = schedule.pixels(last.reached) * pace
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
        speed = in_words(1 / (pace * max(1, schedule.size) ** 2))
        now += f", on average {speed} img/s of {schedule.size} px, {left / 60:.0f} min left (until {end})"
    if outlook.detail:
        now += f"\n{outlook.detail}"
    seconds = outlook.account.seconds()
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in outlook.account.shares().items())
    where = [f"wall time of all attempts, {sum(seconds.values()) / 60:.1f} min: {shares}"] if attempts else []
    gone = [outlook.missing] if outlook.missing else []
    return [*told, "", now, *gone, *where] if rows else [now, *gone]


def _attempt(attempt: AttemptAccount) -> str:
    seconds, ended = attempt.ended - attempt.began, attempt.reason or attempt.state
    if not ended.startswith(attempt.state):
        ended = f"{attempt.state}: {ended}"
    return _row(
        attempt.number,
        f"{attempt.job}.{attempt.restart}" if attempt.job else "-",
        attempt.ranks,
        _moment(attempt.began),
        "-" if attempt.state == "running" else _moment(attempt.ended),
        f"{attempt.resumed_at} to {attempt.reached}",
        attempt.lost_steps,
        f"{attempt.seconds['compute'] / seconds:.0%}" if seconds else "-",
        f"{ended}; on {', '.join(attempt.hosts)}",
    )


def _start(start: StartWithoutAttempt) -> str:
    what = f"no attempt: {start.reason}; on {start.nodes}"
    times = (_moment(start.began), _moment(start.ended))
    return _row("-", f"{start.job}.{start.restart}", "-", *times, "-", "-", "0%", what)


def _row(*cells: object) -> str:
    attempt, job, ranks, start, end, steps, lost, goodput, ended = map(str, cells)
    return f"{attempt:>7}  {job:>8}  {ranks:>5}  {start:<14}  {end:<14}  {steps:<15}  {lost:>4}  {goodput:>7}  {ended}"


def _moment(seconds: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(seconds))
