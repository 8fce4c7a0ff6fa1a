"""Quality for its time: whole runs of commits or configurations, one after the other, with their times and metrics.

A variant is a name, perhaps a commit of this repository, and overrides of the configuration. For each seed all
variants train one after the other, in reverse order for every second seed, since a machine may slow down meanwhile;
then they are evaluated on the same holes. A complete run of the same command and the same code is not trained again.

    python -m benchmarks.bench_quality --data shards --experiment faces64 --seeds 0 1 2 \\
        --variant old@f959ab6 --variant new --variant 'short=phases.coarse.steps=300 phases.completion.steps=30
        phases.discriminator.steps=25 phases.joint.steps=100'
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.common import hardware
from glci_dist import cli
from glci_dist.errors import UserError
from glci_dist.runs.events import Diagnosed
from glci_dist.runs.journal import read_journal

_DEMO = "shards/demo"
_METRICS = ("hole_l1_x100", "psnr_db", "ssim", "seam", "perceptual", "frechet")
_ROOT = Path(__file__).resolve().parent.parent
_CODE = ("glci_dist", "configs")
_OWN_KEYS = ("name", "runs", "seed", "experiment", "data.shards", "data.val", "engine.precision")
"""Keys that a variant may not override: this program sets them."""
_RECORD = "bench-quality.json"
"""In a run's folder: its command, code and wall time."""


@dataclass(frozen=True)
class Variant:
    """What is trained for each seed."""

    name: str
    commit: str
    """Of this repository, or a branch; "": the working tree."""
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """A run's time and metrics."""

    seconds: float
    """Wall time of the whole training command."""
    metrics: dict[str, dict[str, float | None]]
    """By name: ``value``, and ``low`` and ``high`` of its 95% interval."""
    alarms: list[str]
    """The doctor's diagnoses, ``healthy`` excepted."""


def variant(word: str) -> Variant:
    """Parse ``NAME[@COMMIT][=OVERRIDES]``; raises ``argparse.ArgumentTypeError``."""
    match = re.fullmatch(r"([\w-][\w.-]*)(?:@([\w./-]+))?(?:=(.*))?", word, re.DOTALL)
    if match is None:
        raise argparse.ArgumentTypeError(f"{word!r} is no NAME[@COMMIT][='KEY=VALUE ...']")
    overrides = tuple(shlex.split(match[3] or ""))
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if key in _OWN_KEYS:
            raise argparse.ArgumentTypeError(f"{override}: this program sets {key} itself")
    return Variant(match[1], match[2] or "", overrides)


def snapshot(commit: str, folder: Path) -> Path:
    """Copy the code of ``commit``, or of the working tree if "", to a folder of its own, so that no edit changes it.

    Its name is the commit's hash, or the digest of the copied files. Raises ``UserError`` if there is no such commit.
    """
    archive, name = b"", ""
    if commit:
        found = _git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}", commit=commit)
        name = found.decode().strip()
        archive = _git("archive", name, *_CODE, commit=commit)
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if commit:
        subprocess.run(["tar", "-x", "-C", str(partial)], input=archive, check=True)
    else:
        for part in _CODE:
            shutil.copytree(_ROOT / part, partial / part, ignore=shutil.ignore_patterns("__pycache__"))
        name = f"tree-{_digest(partial)}"
    place = folder / name
    if place.exists():
        shutil.rmtree(partial)
    else:
        partial.rename(place)
    return place


def _git(*words: str, commit: str) -> bytes:
    done = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True)
    if done.returncode:
        raise UserError(f"commit {commit}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def train(what: Variant, code: Path, seed: int, folder: Path, arguments: argparse.Namespace) -> float:
    """Train a variant unless its run is complete; returns the wall time in seconds.

    Raises ``UserError`` if the run's folder holds another run or an unfinished one, or if the training fails.
    """
    run, log = folder / what.name, folder / f"{what.name}.log"
    overrides = [
        f"experiment={arguments.experiment}",
        f"data.shards={(arguments.data / 'train').resolve()}",
        f"data.val={(arguments.data / 'val').resolve()}",
        f"runs={folder}",
        f"name={what.name}",
        f"seed={seed}",
        f"engine.precision={arguments.precision}",
        *what.overrides,
    ]
    record = {"overrides": overrides, "workers": arguments.workers, "code": code.name}
    if run.exists():
        return _complete(run, record)
    print(f"seed {seed}, {what.name}: training (log: {log})", flush=True)
    start = time.perf_counter()
    with log.open("w") as stream:
        command = [*_torchrun(arguments.workers), "train", *overrides]
        done = subprocess.run(command, cwd=code, env=_environment(code), stdout=stream, stderr=subprocess.STDOUT)
    seconds = round(time.perf_counter() - start, 1)
    if done.returncode:
        raise UserError(f"seed {seed}, {what.name}: the training ended with code {done.returncode}: see {log}")
    (run / _RECORD).write_text(json.dumps(record | {"seconds": seconds}) + "\n")
    print(f"seed {seed}, {what.name}: {seconds:.0f} s", flush=True)
    return seconds


def _complete(run: Path, record: dict[str, object]) -> float:
    if not (run / _RECORD).is_file():
        raise UserError(f"{run} was interrupted or failed, so its time is not known: remove it, and run again")
    stored = json.loads((run / _RECORD).read_text())
    seconds = float(stored.pop("seconds"))
    for key, value in record.items():
        if stored[key] != value:
            raise UserError(f"{run} has other {key}: {stored[key]} / {value}: choose another --runs, or remove it")
    return seconds


def _torchrun(workers: int) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    return [*launcher, "-m", "glci_dist"]


def _environment(code: Path) -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(code)}


def evaluate(seconds: dict[str, float], code: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Measured]:
    """Evaluate one seed's runs, whose wall times are given, with one evaluator."""
    out = folder / "evaluation"
    command = [*_torchrun(arguments.workers), "evaluate", *(str(folder / name) for name in seconds)]
    command += ["--data", str((arguments.data / "val").resolve()), "--out", str(out)]
    command += ["--resamples", str(arguments.resamples)]
    if status := subprocess.run(command, cwd=code, env=_environment(code)).returncode:
        raise UserError(f"the evaluation ended with code {status}")
    # The baselines come first.
    methods = list(json.loads((out / "evaluation.json").read_text())["methods"].values())[-len(seconds) :]
    measured = {}
    for name, metrics in zip(seconds, methods, strict=True):
        diagnoses = [event for event in read_journal(folder / name) if isinstance(event, Diagnosed)]
        alarms = [f"step {event.step}: {event.state}" for event in diagnoses if event.answer]
        measured[name] = Measured(seconds[name], {key: metrics[key] for key in _METRICS}, alarms)
    return measured


def table(measured: dict[int, dict[str, Measured]]) -> str:
    """Time, its ratio to the first variant's of the same seed, and metrics of every run; then the median ratios."""
    lines = ["| seed | variant | seconds | time ratio | " + " | ".join(_METRICS) + " | doctor |"]
    lines.append("|---" * (len(_METRICS) + 5) + "|")
    ratios: dict[str, list[float]] = {}
    for seed, runs in measured.items():
        first = next(iter(runs.values())).seconds
        for name, run in runs.items():
            ratios.setdefault(name, []).append(run.seconds / first)
            cells = [str(seed), name, f"{run.seconds:.0f}", f"{run.seconds / first:.2f}"]
            cells += [*(_cell(run.metrics[key]) for key in _METRICS), "; ".join(run.alarms) or "healthy"]
            lines.append(f"| {' | '.join(cells)} |")
    medians = ", ".join(f"{name} {statistics.median(each):.2f}" for name, each in ratios.items())
    return "\n".join([*lines, "", f"time ratio, median of {len(measured)} seeds: {medians}"])


def _cell(metric: dict[str, float | None]) -> str:
    value, low, high = (metric.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.4g}" if low is None else f"{value:.4g} ({low:.4g} to {high:.4g})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(_DEMO), metavar="DIR", help="shards in DIR/train and DIR/val (%(default)s)"
    )
    parser.add_argument("--experiment", default="demo", help="(%(default)s)")
    parser.add_argument(
        "--variant",
        dest="variants",
        type=variant,
        action="append",
        required=True,
        metavar="NAME[@COMMIT][=OVERRIDES]",
        help="may be repeated; time ratios are relative to the first",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(0 1 2)")
    parser.add_argument("--precision", default="bf16", help="bf16 or fp32 (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="ranks (%(default)s)")
    parser.add_argument("--resamples", type=int, default=200, metavar="N", help="for the intervals (%(default)s)")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="(runs/quality-EXPERIMENT)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the metrics go (RUNS/quality.json)")
    arguments = parser.parse_args()
    arguments.runs = (arguments.runs or Path(f"runs/quality-{arguments.experiment}")).resolve()
    if len({each.name for each in arguments.variants}) < len(arguments.variants):
        parser.error("two variants have the same name")
    try:
        return measure(arguments)
    except UserError as error:
        print(f"bench_quality: error: {error}", file=sys.stderr)
        return 2


def measure(arguments: argparse.Namespace) -> int:
    """Train, evaluate and print, seed by seed; the result file is written after each."""
    if str(arguments.data) == _DEMO and (status := cli.main(["demo-corpus", _DEMO])):
        return status
    out = arguments.out or arguments.runs / "quality.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    codes = {
        commit: snapshot(commit, arguments.runs / "code") for commit in ["", *(v.commit for v in arguments.variants)]
    }
    measured: dict[int, dict[str, Measured]] = {}
    for number, seed in enumerate(arguments.seeds):
        folder = arguments.runs / f"seed{seed}"
        folder.mkdir(exist_ok=True)
        seconds = {}
        for each in arguments.variants[:: -1 if number % 2 else 1]:
            seconds[each.name] = train(each, codes[each.commit], seed, folder, arguments)
        in_order = {each.name: seconds[each.name] for each in arguments.variants}
        measured[seed] = evaluate(in_order, codes[""], folder, arguments)
        found = {
            "hardware": hardware(),
            "experiment": arguments.experiment,
            "precision": arguments.precision,
            "workers": arguments.workers,
            "variants": [asdict(each) | {"code": codes[each.commit].name} for each in arguments.variants],
            "evaluator": codes[""].name,
            "seeds": {str(each): {name: asdict(run) for name, run in runs.items()} for each, runs in measured.items()},
        }
        out.write_text(json.dumps(found, indent=2) + "\n")
        print(table(measured), flush=True)
    print(f"all figures: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
