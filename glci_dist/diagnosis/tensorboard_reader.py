"""Reads a run's scalars from its TensorBoard files, ours or another program's with other names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glci_dist.errors import UserError
from glci_dist.runs.events import Diagnosed, NetworkReset, Resumed, RolledBack
from glci_dist.runs.journal import read_journal

NAMES = (
    *("loss/reconstruction", "loss/adversarial", "loss/real", "loss/completed", "accuracy/real", "accuracy/completed"),
    *("contest/margin", "contest/hole_share", "contest/lattice", "contest/lattice_of_photos", "contest/diversity"),
    *("contest/diversity_of_photos", "contest/batch_norm_gap", "gradient_at_output/reconstruction"),
    *("gradient_at_output/adversarial", "phase/alpha", "phase/number"),
)
"""The scalars of a diagnosis; another log's names are mapped to these."""


@dataclass(frozen=True)
class Point:
    """The scalars that were written at a step."""

    step: int
    scalars: dict[str, float]


def read_log(folder: Path, names: Mapping[str, str]) -> list[Point]:
    """The points of a folder of TensorBoard files in the order of steps; ``names``: our name -> the log's.

    If a step was repeated after a restart, its last values are used. Raises UserError for a folder without such files,
    and for names that are in none.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board_folder = folder / "tensorboard" if (folder / "tensorboard").is_dir() else folder
    if not board_folder.is_dir() or not any(board_folder.glob("*tfevents*")):
        below = sorted({str(path.parent) for path in board_folder.rglob("*tfevents*")}) if board_folder.is_dir() else []
        instead = f"one of {', '.join(below[:5])}" if below else "a run's folder, or one that TensorBoard shows"
        raise UserError(f"{folder} holds no TensorBoard files: name {instead}")
    board = EventAccumulator(str(board_folder), size_guidance={"scalars": 0})
    board.Reload()
    there = set(board.Tags()["scalars"])
    for ours, theirs in names.items():
        if ours not in NAMES:
            raise UserError(f"--map {ours}={theirs}: {ours} is no scalar of a diagnosis: map one of {', '.join(NAMES)}")
        if theirs not in there:
            raise UserError(f"--map {ours}={theirs}: {folder} has no scalar {theirs}, but {', '.join(sorted(there))}")
    steps: dict[int, dict[str, float]] = {}
    for name in NAMES:
        tag = names.get(name, name)
        if tag in there:
            for event in board.Scalars(tag):
                steps.setdefault(event.step, {})[name] = event.value
    return [Point(step, steps[step]) for step in sorted(steps)]


def recorded_diagnoses(folder: Path) -> list[str]:
    """A line for each diagnosis in the journal of a run of ours, with what was done about it.

    These used every update, whereas a log may hold means over several.
    """
    told: list[tuple[int, str]] = []
    for event in read_journal(folder):
        if isinstance(event, Resumed):
            # A resumed run repeats these steps.
            told = [each for each in told if each[0] < event.step]
        elif isinstance(event, RolledBack) and event.to is not None:
            told.append((event.step, f"back to step {event.to}"))
        elif isinstance(event, NetworkReset):
            told.append((event.step, f"the {event.network} were reset"))
        elif isinstance(event, Diagnosed):
            factors = {"alpha": event.alpha, "discriminator_lr": event.discriminator_lr}
            changes = [f"{name} x {factor:.3g}" for name, factor in factors.items() if factor is not None]
            done = f": {', '.join(changes)}" if changes else ""
            answer = f" ({event.answer}{done})" if event.answer not in ("", "warn") else ""
            told.append((event.step, f"{event.state}: {'; '.join(event.evidence)}{answer}"))
    return [f"step {step:>6}  {line}" for step, line in told]


def contests(points: list[Point]) -> list[list[Point]]:
    """The parts of a log in which both networks were trained, phase by phase, earliest first."""
    found: list[list[Point]] = []
    phase: float | None = None
    """Of the last contest."""
    alone = False
    """Whether one network has been trained alone since."""
    for point in points:
        here = point.scalars.get("phase/number")
        if not _is_contest(point):
            # Within a phase a network may be updated less often than scalars are written.
            alone = alone or here is None or here != phase
        elif found and here == phase and not alone:
            found[-1].append(point)
        else:
            found.append([point])
            phase, alone = here, False
    return found


def _is_contest(point: Point) -> bool:
    """Whether both networks were trained; with alpha 0 a contest has ``phase/alpha`` but no adversarial loss."""
    names = point.scalars.keys()
    return {"loss/real", "loss/completed"} <= names and not names.isdisjoint({"loss/adversarial", "phase/alpha"})
