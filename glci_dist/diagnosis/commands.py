"""The command line of `glci doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path

from glci_dist.errors import UserError

_HELP = """\
Diagnose a run's adversarial training from its TensorBoard files: its state (healthy, discriminator dominates,
discriminator asleep, no contest, collapse, checkerboard, diverging) with the evidence and what to change, and which
state it was in at which steps. Writes diagnosis.txt and diagnosis.html (with plots) into the run's folder. A run makes
the same diagnosis during training (doctor.* in its configuration).

For another program's log, map its names to ours, at least loss/adversarial (of the generator), loss/real and
loss/completed (of the discriminator); states whose scalars are missing are not checked. All names: docs/doctor.md.

examples:
  glci doctor runs/faces64
  glci doctor logs/their-gan --map loss/adversarial=G/loss --map loss/real=D/real --map loss/completed=D/fake
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor`."""
    summary = "diagnose a run's adversarial training, and say what to change"
    parser = subparsers.add_parser("doctor", help=summary, description=_HELP)
    parser.add_argument("folder", metavar="RUN", type=Path, help="a run's folder, or one with TensorBoard files")
    parser.add_argument(
        "--map", action="append", default=[], metavar="OURS=THEIRS", help="a scalar's name in another program's log"
    )
    parser.add_argument("--window", type=int, default=50, metavar="N", help="steps that a diagnosis is based on (50)")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="where to write (RUN/diagnosis)")
    parser.set_defaults(run=_doctor)


def _doctor(parsed: argparse.Namespace) -> int:
    from glci_dist.diagnosis.report import as_text, write_report
    from glci_dist.diagnosis.tensorboard_reader import contests, read_log, recorded_diagnoses
    from glci_dist.diagnosis.timeline import diagnose

    if parsed.window < 1:
        raise UserError(f"--window={parsed.window} is too small: it must be at least 1")
    names = {}
    for word in parsed.map:
        ours, equals, theirs = word.partition("=")
        if not equals:
            raise UserError(f"--map {word}: write OURS=THEIRS, such as loss/real=D/real_loss")
        names[ours] = theirs
    points, told = read_log(parsed.folder, names), recorded_diagnoses(parsed.folder)
    found = contests(points)
    if not found and not told:
        raise UserError(
            f"{parsed.folder} has no adversarial training yet: no step with loss/adversarial, loss/real and "
            "loss/completed (of another program's log: --map)"
        )
    since = next((point.step for point in points if "loss/real" in point.scalars), None)
    judged = [(contest, diagnose(contest, window=parsed.window, since=since)) for contest in found]
    target = parsed.out or parsed.folder / "diagnosis"
    text = as_text(parsed.folder, judged, told)
    print(text)
    plain, page = write_report(target, text, parsed.folder, judged, told)
    print(f"written: {plain}, {page}")
    return 0
