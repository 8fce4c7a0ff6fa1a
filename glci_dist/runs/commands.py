"""`glci status`: what a run is doing, what its attempts did, and where the time went."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from glci_dist import compose
from glci_dist.errors import UserError
from glci_dist.runs.ledger import Account, account

_DESCRIPTION = """\
Each attempt at a run: where it ran, which steps, how it ended and how many steps had to be run again;
then where the wall time of all attempts went. compute is the goodput: work that is part of the result.

  compute        updates that are part of the result
  communication  waiting in collectives for other ranks
  data           waiting for batches
  checkpoint     waiting for copies and for earlier saves
  startup        from a process's start to its first step
  restart        from an attempt's last sign of life to the next one's process
  lost           steps that were run again after a kill or a rollback

example:
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
    status.add_argument("folder", metavar="RUN", type=Path, help="the run's folder, such as runs/faces64")
    status.add_argument("--json", action="store_true", help="print the same as JSON")
    status.set_defaults(run=_status)


def _status(parsed: argparse.Namespace) -> int:
    config = compose.read(parsed.folder / "config.yaml")
    steps = sum(phase.steps for phase in config.phases.values())
    found = account(parsed.folder)
    if not found.attempts:
        raise UserError(f"{parsed.folder} was never started: start it with glci train")
    if parsed.json:
        attempts = [asdict(attempt) for attempt in found.attempts]
        print(json.dumps({"steps": steps, "attempts": attempts, "seconds": found.seconds()}, indent=1))
        return 0
    print("\n".join(lines(found, steps=steps, global_batch=config.global_batch)))
    return 0


def lines(found: Account, *, steps: int, global_batch: int) -> list[str]:
    """The status as text, for a schedule of ``steps``."""
    told = [f"{'attempt':>7}  {'host':<16} {'ranks':>5}  {'steps':<17} {'lost':>5}  {'minutes':>7}  ended"]
    for attempt in found.attempts:
        ended = attempt.state + (f": {attempt.reason}" if attempt.reason else "")
        told.append(
            f"{attempt.number:>7}  {attempt.host:<16} {attempt.ranks:>5}  "
            f"{f'{attempt.resumed_at} to {attempt.reached}':<17} {attempt.lost_steps:>5}  "
            f"{(attempt.ended - attempt.began) / 60:>7.1f}  {ended}"
        )
    last = found.attempts[-1]
    now = f"{last.state}: step {last.reached} of {steps}"
    if last.state == "running" and last.seconds_a_step:
        left = (steps - last.reached) * last.seconds_a_step
        done = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
        now += f", {global_batch / last.seconds_a_step:.0f} img/s, {left / 60:.0f} min left (until {done})"
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in found.shares().items())
    return [*told, "", now, f"wall time of all attempts, {sum(found.seconds().values()) / 60:.1f} min: {shares}"]
