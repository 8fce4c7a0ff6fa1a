"""`glci`: each subcommand is a few lines that call one room.

Exit codes: 0 done; 2 what was asked cannot be done (one line says why); 3 stopped by a signal
and resumable; 4 another attempt owns the run; 1 a fault.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from glci_dist import __version__, compose
from glci_dist.checkpoints import commands as checkpoint_commands
from glci_dist.cluster.environment import environment_rank, tell_cause
from glci_dist.data import commands as data_commands
from glci_dist.diagnosis import commands as diagnosis_commands
from glci_dist.errors import Fault, Interrupted, Superseded, UserError
from glci_dist.evaluation import commands as evaluation_commands
from glci_dist.slurm import commands as slurm_commands
from glci_dist.slurm import status
from glci_dist.urls import HIDDEN, without_secrets

_TRAIN = """\
Train a completion network: from the last checkpoint of the run, or from the start.
To resume, run the same command again.

examples:
  glci train data.shards=shards/train name=first
  torchrun --nproc-per-node 2 -m glci_dist train experiment=faces160 data.shards=shards/train
  glci train recipe=paper global_batch=96 phases.joint.alpha=1e-3 data.shards=shards/train

overrides are Hydra's: KEY=VALUE for a key of the configuration, or a choice of a group:
  recipe={recipes}
  experiment={experiments}
`glci config [OVERRIDES]` prints the whole configuration that they make.
Each key is explained in glci_dist/config.py.
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="glci", description="Distributed training of globally and locally consistent image completion."
    )
    parser.add_argument("--version", action="version", version=f"glci-dist {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    data_commands.add_parser(subparsers)
    data_commands.add_demo_parser(subparsers)
    train = _add(subparsers, "train", "train a run, or resume it", _TRAIN.format(**_groups()))
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    train.set_defaults(run=_train)
    show = _add(
        subparsers,
        "config",
        "print the configuration that overrides make",
        "Print the whole configuration as YAML, without starting anything.\n\n"
        "example:\n  glci config experiment=faces160 recipe=paper data.shards=shards/train\n",
    )
    show.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    show.set_defaults(run=_config)
    evaluation_commands.add_parser(subparsers)
    diagnosis_commands.add_parser(subparsers)
    checkpoint_commands.add_parser(subparsers)
    status.add_parser(subparsers)
    slurm_commands.add_parsers(subparsers, _groups()["clusters"])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parsed = build_parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except UserError as error:
        return _say(f"glci: error: {error}", 2, every_rank=error.one_rank)
    except Interrupted as error:
        return _say(f"glci: {error}", 3)
    except Superseded as error:
        return _say(f"glci: {error}", 4)
    except Fault as error:
        return _say(f"glci: fault: {error}", 1, every_rank=error.one_rank)
    except KeyboardInterrupt:
        return _say("glci: stopped at once", 130)
    except BrokenPipeError:
        return 0


def _train(parsed: argparse.Namespace) -> int:
    config = compose.load(parsed.overrides)
    from glci_dist.training.loop import train

    train(config)
    return 0


def _config(parsed: argparse.Namespace) -> int:
    config = compose.load(parsed.overrides)
    text = compose.to_yaml(config)
    print(text, end="")
    if HIDDEN in text:
        print(f"glci: credentials in urls are not shown ({HIDDEN})", file=sys.stderr)
    return 0


def _add(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    return subparsers.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _groups() -> dict[str, str]:
    folder = compose.config_folder()
    return {
        f"{group}s": "|".join(sorted(path.stem for path in (folder / group).glob("*.yaml")))
        for group in ("recipe", "experiment", "cluster")
    }


def _say(line: str, code: int, *, every_rank: bool = False) -> int:
    """Print on rank 0, or on the rank that alone knows; every rank returns the code."""
    line = without_secrets(line)
    tell_cause(line)
    if every_rank or environment_rank() == 0:
        sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
    return code
