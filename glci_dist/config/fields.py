"""Declares the rule for a field of the schema, and finds the declared rules."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_RULES, _FREE, _COMPONENT = "rules", "free", "component"


@dataclass(frozen=True)
class Rule:
    """A rule for one value, independent of the other values."""

    holds: Callable[[Any], bool]
    """Whether a value satisfies the rule."""
    otherwise: str
    """The error message after ``key=value``."""
    choices: tuple[str, ...] = ()
    """The allowed values of a choice."""


def ruled(*rules: Rule, **default: Any) -> Any:
    """A field with rules; ``default`` or ``default_factory`` as for ``dataclasses.field``."""
    return field(**default, metadata={_RULES: rules})


def one_of(*choices: str) -> Any:
    """A field that is one of these words; the first is the default."""
    otherwise = f"is not known: choose one of {', '.join(choices)}"
    return ruled(Rule(choices.__contains__, otherwise, choices), default=choices[0])


def one_of_or_path(*choices: str, see: str) -> Any:
    """As ``one_of``, or the dotted path of a class of the user's, which ``see`` explains."""
    otherwise = f"is not known: choose one of {', '.join(choices)}, or the dotted path of a class of your own ({see})"
    return ruled(Rule(lambda word: word in choices or _is_path(word), otherwise, choices), default=choices[0])


def at_least(least: int, *further: Rule, default: Any) -> Any:
    """A field that is a number >= ``least``."""
    rule = Rule(lambda value: value >= least, f"is too small: it must be at least {least}")
    return ruled(rule, *further, default=default)


def above(limit: int, *, default: Any) -> Any:
    """A field that is a number > ``limit``."""
    return ruled(Rule(lambda value: value > limit, f"is too small: it must be greater than {limit}"), default=default)


def below_one(*, default: float) -> Any:
    """A field that is a number in [0, 1)."""
    return ruled(Rule(lambda value: 0 <= value < 1, "must be at least 0 and less than 1"), default=default)


def free_mapping(each: Rule | None = None) -> Any:
    """A field that is a mapping with any keys; ``each``: the rule for its values. Empty by default."""
    return field(default_factory=dict, metadata={_FREE: each})


def _is_path(word: str) -> bool:
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", word) is not None


@dataclass(frozen=True)
class Slot:
    """A key at which the user names own classes by ``_target_`` (docs/extending.md)."""

    provided: tuple[str, ...]
    """Arguments that the run passes to constructors with parameters of these names."""
    by_name: bool
    """Whether the key is a mapping from names to components, not one component."""


def component(*provided: str, by_name: bool = False) -> Any:
    """A field for one component of the user's, or a mapping of several by name; empty by default."""
    return field(default_factory=dict, metadata={_FREE: None, _COMPONENT: Slot(provided, by_name)})


def walk(kind: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every dotted key of a dataclass of the schema, groups included, with its field."""
    for each in dataclasses.fields(kind):
        yield f"{prefix}{each.name}", each
        if dataclasses.is_dataclass(each.default_factory):
            yield from walk(each.default_factory, f"{prefix}{each.name}.")


def rules_of(declared: dataclasses.Field[Any]) -> tuple[Rule, ...]:
    """The rules of a field."""
    return declared.metadata.get(_RULES, ())


def free_in(kind: Any) -> dict[str, Rule | None]:
    """The dotted keys of a schema dataclass that are free mappings, with the rules for their values."""
    return {key: each.metadata[_FREE] for key, each in walk(kind) if _FREE in each.metadata}


def slots_in(kind: Any) -> dict[str, Slot]:
    """The dotted keys of a schema dataclass that take components of the user's."""
    return {key: each.metadata[_COMPONENT] for key, each in walk(kind) if _COMPONENT in each.metadata}
