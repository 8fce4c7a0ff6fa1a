"""The frozen surface: commands, flags, configuration keys, recipes and experiments.

Scripts depend on these names. A change has to be deliberate: make it in tests/surface.txt too, with
``python -m tests.test_surface > tests/surface.txt``.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import MISSING

from glci_dist import compose, config
from glci_dist.cli import build_parser

_SURFACE = Path(__file__).with_name("surface.txt")

Parser = argparse.ArgumentParser


def _commands(parser: Parser, name: str = "glci") -> Iterator[tuple[str, Parser, str]]:
    """Each command with its parser and the summary that its parent's help shows."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for command, inner in action.choices.items():
                yield f"{name} {command}", inner, summaries.get(command, "")
                yield from _commands(inner, f"{name} {command}")


def _arguments(parser: Parser) -> list[argparse.Action]:
    left_out = (argparse._SubParsersAction, argparse._HelpAction)
    return [action for action in parser._actions if not isinstance(action, left_out)]


def _describe_argument(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    takes = "" if action.nargs == 0 else f" {getattr(action.type, '__name__', 'str')}"
    times = {None: "", "*": " any number", "+": " one or more", "?": " or none", 0: " flag"}[action.nargs]
    must = " required" if action.required and action.option_strings else ""
    unset = action.default is None or action.nargs in (0, "*") or action.default is argparse.SUPPRESS
    default = "" if unset else f" = {action.default}"
    return f"{name}{takes}{times}{must}{default}"


def _describe_keys(kind: type, prefix: str = "") -> Iterator[str]:
    """Each key with its type and its default, as the schema has them; ``phases`` with a name in the middle."""
    for field in dataclasses.fields(kind):
        key, inner = f"{prefix}{field.name}", vars(config).get(str(field.type))
        if str(field.type) == "dict[str, PhaseConfig]":
            yield from _describe_keys(config.PhaseConfig, f"{key}.<phase>.")
        elif inner is not None:
            yield from _describe_keys(inner, f"{key}.")
        else:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            yield f"{key}: {field.type} " + ("needs a value" if default == MISSING else f"= {default!r}")


def surface() -> str:
    """The whole surface as text, a name a line."""
    parser = build_parser()
    lines = ["glci", *(f"  {_describe_argument(action)}" for action in _arguments(parser))]
    for name, command, _ in _commands(parser):
        lines += [name, *(f"  {_describe_argument(action)}" for action in _arguments(command))]
    lines += ["configuration", *(f"  {line}" for line in _describe_keys(config.Config))]
    for group in ("recipe", "experiment"):
        lines += [group, *sorted(f"  {path.stem}" for path in (compose.config_folder() / group).glob("*.yaml"))]
    return "\n".join(lines) + "\n"


def test_commands_flags_keys_and_choices_are_those_of_the_frozen_surface() -> None:
    frozen, found = _SURFACE.read_text().splitlines(), surface().splitlines()
    gone = [line.strip() for line in frozen if line not in found]
    new = [line.strip() for line in found if line not in frozen]
    assert found == frozen, (
        f"the surface changed: gone {gone}, new {new}. If that is meant: python -m tests.test_surface > {_SURFACE}"
    )


def test_the_frozen_surface_is_what_composing_finds() -> None:
    composed = compose.keys(compose.load(["data.shards=x"]))
    listed = [line.split(":")[0].strip() for line in surface().splitlines() if ": " in line]
    expected = {key.replace("<phase>", "joint") for key in listed}
    others = ("phases.coarser", "phases.coarse", "phases.completion", "phases.discriminator")
    assert {key for key in composed if not key.startswith(others)} == expected


def test_every_command_and_argument_has_a_help_and_every_command_an_example() -> None:
    for name, command, summary in _commands(build_parser()):
        assert summary, f"{name} has no summary"
        for action in _arguments(command):
            assert action.help, f"{name} {action.dest} has no help"
        assert "example" in command.format_help(), f"{name} --help has no example"


def _fields_without_docstring(kind: ast.ClassDef) -> Iterator[str]:
    for statement, following in zip(kind.body, [*kind.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign):
            continue
        is_group = ast.unparse(statement.annotation) in vars(config)
        told = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if not (is_group or told):
            yield f"{kind.name}.{ast.unparse(statement.target)}"


def test_every_configuration_key_is_explained_where_it_is_declared() -> None:
    modules = [ast.parse(path.read_text()) for path in Path(config.__file__).parent.glob("*.py")]
    nodes = [node for module in modules for node in module.body]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]
    assert sorted(kind.name for kind in classes) == sorted(kind for kind in vars(config) if kind.endswith("Config"))
    assert [kind.name for kind in classes if not ast.get_docstring(kind)] == []
    assert [name for kind in classes for name in _fields_without_docstring(kind)] == []


@pytest.mark.parametrize("group", ["recipe", "experiment"])
def test_the_help_of_train_names_every_choice(group: str) -> None:
    train = next(command for name, command, _ in _commands(build_parser()) if name == "glci train")
    for path in (compose.config_folder() / group).glob("*.yaml"):
        assert path.stem in train.format_help()


if __name__ == "__main__":
    print(surface(), end="")
