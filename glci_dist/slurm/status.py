"""`glci status`: what runs are doing, what their attempts did, and where the time went."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glci_dist import compose
from glci_dist.config import Config
from glci_dist.errors import UserError
from glci_dist.runs.ledger import AttemptAccount
from glci_dist.slurm.asking import patience
from glci_dist.slurm.outlook import Outlook, Start, look, until

_ANSWER_S = 60.0
"""For how long a scheduler that does not answer is asked again."""
_DESCRIPTION = """\
Each attempt at a run: its job (and which start of it), when, which steps, how many of them had to be run again,
its goodput (the share of its time that became part of the result), how it ended, and where it ran; a job's start
that came to no attempt is told too;
then what the run is doing, from its folder and from the scheduler (running, queued, done, failed, ...), and where
the wall time of all attempts went. compute is the goodput: work that is part of the result.
Without RUN: a line for each run in runs/.

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
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `status`."""
    status = subparsers.add_parser(
        "status",
        help="a run's attempts, its step, and where its time went",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    status.add_argument("folder", metavar="RUN", nargs="?", type=Path, help="the run's folder (all in runs/)")
    status.add_argument("--json", action="store_true", help="print the same as JSON")
    status.set_defaults(run=_status)


def _status(parsed: argparse.Namespace) -> int:
    with patience(_ANSWER_S):
        return _tell(parsed)


def _tell(parsed: argparse.Namespace) -> int:
    if parsed.folder is None:
        return _all(Path("runs"), as_json=parsed.json)
    config = _configuration(parsed.folder)
    outlook = look(parsed.folder)
    if parsed.json:
        print(json.dumps(_record(outlook, config), indent=1))
        return 0
    print("\n".join(lines(outlook, steps=_steps(config), global_batch=config.global_batch)))
    return 0


def _all(root: Path, *, as_json: bool) -> int:
    runs = sorted(path.parent for pattern in ("*/config.yaml", "*/jobs/config.yaml") for path in root.glob(pattern))
    found = {run.parent if run.name == "jobs" else run for run in runs}
    if not found:
        raise UserError(f"no run in {root}/: name a run's folder, or start one with glci train or glci submit")
    told = {run: look(run) for run in sorted(found)}
    if as_json:
        print(json.dumps({run.name: _record(outlook, _configuration(run)) for run, outlook in told.items()}, indent=1))
        return 0
    for run, outlook in told.items():
        attempts = outlook.account.attempts
        step = attempts[-1].reached if attempts else 0
        detail = f" ({outlook.detail})" if outlook.detail else ""
        print(f"{run}  {outlook.state}: step {step} of {_steps(_configuration(run))}{detail}")
    return 0


def _configuration(run: Path) -> Config:
    """Of the run's last start, or of its submission if it has not started."""
    started, wanted = run / "config.yaml", run / "jobs" / "config.yaml"
    return compose.read(wanted if wanted.exists() and not started.exists() else started)


def _steps(config: Config) -> int:
    return sum(phase.steps for phase in config.phases.values())


def _record(outlook: Outlook, config: Config) -> dict[str, Any]:
    return {
        "state": outlook.state,
        "detail": outlook.detail,
        "saved": outlook.saved,
        "steps": _steps(config),
        "attempts": [asdict(attempt) for attempt in outlook.account.attempts],
        "starts": [asdict(start) for start in outlook.starts],
        "seconds": outlook.account.seconds(),
        "job": asdict(outlook.job) if outlook.job else None,
    }


def lines(outlook: Outlook, *, steps: int, global_batch: int) -> list[str]:
    """The status as text, for a schedule of ``steps``."""
    attempts = outlook.account.attempts
    rows = [(each.began, _attempt(each)) for each in attempts]
    rows += [(each.began, _start(each)) for each in outlook.starts]
    told = [_row("attempt", "job", "ranks", "start", "end", "steps", "lost", "goodput", "ended")]
    told += [row for _, row in sorted(rows)]
    last = attempts[-1] if attempts else None
    now = f"{outlook.state}: step {last.reached if last else 0} of {steps}"
    if outlook.state not in ("running", "done") and last is not None:
        now += f", saved up to step {outlook.saved}"
    if outlook.state == "running" and last is not None and last.seconds_a_step:
        left = (steps - last.reached) * last.seconds_a_step
        now += f", {global_batch / last.seconds_a_step:.0f} img/s, {left / 60:.0f} min left (until {until(left)})"
    if outlook.detail:
        now += f"\n{outlook.detail}"
    seconds = outlook.account.seconds()
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in outlook.account.shares().items())
    where = [f"wall time of all attempts, {sum(seconds.values()) / 60:.1f} min: {shares}"] if attempts else []
    return [*told, "", now, *where] if rows else [now]


def _attempt(attempt: AttemptAccount) -> str:
    seconds = attempt.ended - attempt.began
    return _row(
        attempt.number,
        f"{attempt.job}.{attempt.restart}" if attempt.job else "-",
        attempt.ranks,
        _moment(attempt.began),
        "-" if attempt.state == "running" else _moment(attempt.ended),
        f"{attempt.resumed_at} to {attempt.reached}",
        attempt.lost_steps,
        f"{attempt.seconds['compute'] / seconds:.0%}" if seconds else "-",
        f"{_ending(attempt)}; on {', '.join(attempt.hosts)}",
    )


def _ending(attempt: AttemptAccount) -> str:
    if not attempt.reason or attempt.reason.startswith(attempt.state):
        return attempt.reason or attempt.state
    return f"{attempt.state}: {attempt.reason}"


def _start(start: Start) -> str:
    what = f"no attempt: {start.reason}; on {start.nodes}"
    times = (_moment(start.began), _moment(start.ended))
    return _row("-", f"{start.job}.{start.restart}", "-", *times, "-", "-", "0%", what)


def _row(*cells: object) -> str:
    attempt, job, ranks, start, end, steps, lost, goodput, ended = map(str, cells)
    return f"{attempt:>7}  {job:>8}  {ranks:>5}  {start:<14}  {end:<14}  {steps:<15}  {lost:>4}  {goodput:>7}  {ended}"


def _moment(seconds: float) -> str:
    """A local time."""
    return time.strftime("%m-%d %H:%M:%S", time.localtime(seconds))
