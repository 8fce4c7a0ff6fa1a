"""`glci`: each subcommand is a few lines that call one package.

Exit codes: `errors.ExitCode`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from glci_dist import __version__, compose, output
from glci_dist.checkpoints import commands as checkpoint_commands
from glci_dist.cluster import launchers
from glci_dist.cluster.elastic import write_error_file
from glci_dist.data import commands as data_commands
from glci_dist.data.names import in_one_line
from glci_dist.diagnosis import commands as diagnosis_commands
from glci_dist.errors import ExitCode, Fault, Interrupted, Superseded, UserError, is_short_of_files, out_of_memory
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
Each key is explained in glci_dist/config/.
"""

_READER_S = 5.0
"""Maximum wait of a training for a reader of its output that reads nothing, such as a pager."""


class _Parser(argparse.ArgumentParser):
    """Shows descriptions as they are written; prints usage errors, which all ranks have, on one rank."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def _print_message(self, message: str, file: Any = None) -> None:
        if not launchers.is_silent():
            super()._print_message(without_secrets(message), file)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser: argparse.ArgumentParser = _Parser(
        prog="glci",
        description="Distributed training of globally and locally consistent image completion.",
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"glci-dist {__version__}")
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    data_commands.add_parser(subparsers)
    data_commands.add_demo_parser(subparsers)
    groups = _groups()
    train = subparsers.add_parser("train", help="train a run, or resume it", description=_TRAIN.format(**groups))
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    train.set_defaults(run=_train, is_for_ranks=True)
    show = subparsers.add_parser(
        "config",
        help="print the configuration that overrides make",
        description="Print the whole configuration as YAML, without starting anything.\n\n"
        "example:\n  glci config experiment=faces160 recipe=paper data.shards=shards/train\n",
    )
    show.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the configuration")
    show.set_defaults(run=_config, is_product=True)
    evaluation_commands.add_parser(subparsers)
    diagnosis_commands.add_parser(subparsers)
    checkpoint_commands.add_parser(subparsers)
    status.add_parser(subparsers)
    slurm_commands.add_parsers(subparsers, groups["clusters"])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parsed = build_parser().parse_args(arguments)
    return told(_run(parsed), is_product=getattr(parsed, "is_product", False), speaks=_is_alone(parsed))


def told(code: int, *, is_product: bool, speaks: bool = False) -> int:
    """The exit code of a command that ended with ``code``; reports output that could not be written.

    ``is_product``: the output is the command's only result, so losing it is a failure, unless the reader left.
    ``speaks``: this process reports for itself, whatever rank the environment gives it.
    """
    output.flush()
    loss = output.lost("stdout")
    if loss is None or loss.nobody_reads or (launchers.is_silent() and not speaks):
        return code
    code = code or (ExitCode.REFUSED if is_product else ExitCode.DONE)
    kind = "error" if code else "note"
    output.say(
        f"glci: {kind}: what it printed could not all be written ({loss.reason}): make room, or write it elsewhere"
    )
    return code


def _run(parsed: argparse.Namespace) -> int:
    alone = _is_alone(parsed)
    try:
        return parsed.run(parsed) if _is_mine(parsed) else 0
    except UserError as error:
        return _say(f"glci: error: {error}", ExitCode.REFUSED, every_rank=alone or error.one_rank)
    except Interrupted as error:
        return _say(f"glci: {error}", ExitCode.STOPPED, every_rank=alone)
    except Superseded as error:
        return _say(f"glci: {error}", ExitCode.SUPERSEDED, every_rank=alone)
    except Fault as error:
        return _say(f"glci: fault: {error}", ExitCode.FAULT, every_rank=alone or error.one_rank)
    except MemoryError as error:
        return _say(f"glci: fault: {out_of_memory(error)}", ExitCode.FAULT, every_rank=True)
    except (OSError, RuntimeError) as error:
        # Any code can open one file too many.
        if not is_short_of_files(error):
            raise
        said = str(error).strip().partition("\n")[0]
        return _say(f"glci: error: {UserError(said)}", ExitCode.REFUSED, every_rank=True)
    except KeyboardInterrupt:
        return _say("glci: stopped at once", ExitCode.INTERRUPTED, every_rank=alone)


def _is_mine(parsed: argparse.Namespace) -> bool:
    """Whether this process, of those that a launcher started, runs the command. Raises ``UserError``."""
    if getattr(parsed, "is_for_ranks", False):
        # Some launchers pass --local-rank to all ranks, in addition to environment variables or instead of them.
        found = launchers.set_torch_variables()
        if found is None and (parsed.local_rank or 0) > 0:
            raise UserError(
                f"--local-rank={parsed.local_rank}, but no launcher's variables are there (RANK, WORLD_SIZE, ...): "
                "start the ranks with torchrun or `glci submit`"
            )
        return True
    if _is_alone(parsed):
        return True
    found = launchers.detect()
    assert found is not None
    if not getattr(parsed, "is_product", False):
        raise UserError(
            f"this command is for one process, and {found.by} started {found.size}: start it by itself, without a "
            "launcher (only train and evaluate are for many ranks)"
        )
    return found.rank == 0


def _is_alone(parsed: argparse.Namespace) -> bool:
    """Whether this is the command's only process; the environment may still have variables of an outer launcher."""
    if getattr(parsed, "is_for_ranks", False):
        return False
    if getattr(parsed, "asks_cluster", False):
        # Called inside an allocation, whose variables do not concern it.
        return True
    try:
        found = launchers.detect()
    except UserError:
        # Invalid variables do not matter to a command without ranks.
        return True
    return found is None or not found.is_one_of_many


def _train(parsed: argparse.Namespace) -> int:
    config = compose.load(parsed.overrides)
    from glci_dist.training.train import train

    output.wait_at_most(_READER_S)
    train(config)
    return 0


def _config(parsed: argparse.Namespace) -> int:
    text = compose.to_yaml(compose.load(parsed.overrides))
    print(text, end="")
    if HIDDEN in text:
        output.say(f"glci: credentials in urls are not shown ({HIDDEN})")
    return 0


def _groups() -> dict[str, str]:
    return {
        f"{group}s": "|".join(sorted(path.stem for path in (compose.config_folder() / group).glob("*.yaml")))
        for group in ("recipe", "experiment", "cluster")
    }


def _say(line: str, code: int, *, every_rank: bool = False) -> int:
    """Print, unless another rank prints the same; every rank returns the code."""
    # A path in it may contain line breaks.
    line = in_one_line(without_secrets(line))
    write_error_file(line)
    if every_rank or not launchers.is_silent():
        output.flush()
        output.say(line)
    return code
