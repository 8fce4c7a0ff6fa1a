"""`glci status`: what runs are doing, what their attempts did, and where the time went."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from glci_dist import compose
from glci_dist.config import Config
from glci_dist.errors import UserError
from glci_dist.slurm.outlook import Outlook, look, until

_DESCRIPTION = """\
Each attempt at a run: where it ran, which steps, how it ended and how many steps had to be run again;
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
        "steps": _steps(config),
        "attempts": [asdict(attempt) for attempt in outlook.account.attempts],
        "seconds": outlook.account.seconds(),
        "job": asdict(outlook.job) if outlook.job else None,
    }


def lines(outlook: Outlook, *, steps: int, global_batch: int) -> list[str]:
    """The status as text, for a schedule of ``steps``."""
    attempts = outlook.account.attempts
    told = [f"{'attempt':>7}  {'job':>8}  {'ranks':>5}  {'steps':<17} {'lost':>5}  {'minutes':>7}  ended"]
    for attempt in attempts:
        ended = attempt.state + (f": {attempt.reason}" if attempt.reason else "")
        job = f"{attempt.job}.{attempt.restart}" if attempt.job else "-"
        told.append(
            f"{attempt.number:>7}  {job:>8}  {attempt.ranks:>5}  "
            f"{f'{attempt.resumed_at} to {attempt.reached}':<17} {attempt.lost_steps:>5}  "
            f"{(attempt.ended - attempt.began) / 60:>7.1f}  {ended}; on {', '.join(attempt.hosts)}"
        )
    last = attempts[-1] if attempts else None
    now = f"{outlook.state}: step {last.reached if last else 0} of {steps}"
    if outlook.state == "running" and last is not None and last.seconds_a_step:
        left = (steps - last.reached) * last.seconds_a_step
        now += f", {global_batch / last.seconds_a_step:.0f} img/s, {left / 60:.0f} min left (until {until(left)})"
    if outlook.detail:
        now += f"\n{outlook.detail}"
    seconds = outlook.account.seconds()
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in outlook.account.shares().items())
    where = [f"wall time of all attempts, {sum(seconds.values()) / 60:.1f} min: {shares}"] if attempts else []
    return [*told, "", now, *where] if attempts else [now]
