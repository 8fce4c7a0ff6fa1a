"""The overrides that a sweep's one stands for: ``seed=1,2``, or one of Hydra's functions, ``seed=range(1,4)``."""

from __future__ import annotations

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from glci_dist.compose import quoted
from glci_dist.errors import UserError

_WITHOUT_VALUES = (ValueType.GLOB_CHOICE_SWEEP, ValueType.INTERVAL_SWEEP)


def values(word: str) -> list[str]:
    """An override for each value of ``word``; itself, if it is no sweep. Raises ``UserError``.

    Values with commas between them stay as they were written, since runs are named after them.
    """
    key, equals, value = word.partition("=")
    override = _parsed(word)
    if not equals or (override and not override.is_sweep_override()):
        return [word]
    if override is None or override.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
        return [f"{key}={part}" for part in _parts(key, value)]
    if override.value_type in _WITHOUT_VALUES:
        raise UserError(
            f"{key}: glob() and interval() list no values: write {key}=A,B, {key}=choice(A,B) or {key}=range(FIRST,END)"
        )
    try:
        listed = [f"{key}={each}" for each in override.sweep_string_iterator()]
    # ValueError: Python's, for a step of 0.
    except (HydraException, ValueError) as error:
        raise UserError(f"{key}: {error}") from error
    if not listed:
        raise UserError(f"{key}: the sweep has no value: write {key}=A,B or {key}=range(FIRST,END)")
    return listed


def _parts(key: str, value: str) -> list[str]:
    """The values between commas, of which Hydra takes each; what it does not take stays whole."""
    parts: list[str] = []
    pieces = re.split(r"(?<!\\),", value)
    start = 0
    for end in range(1, len(pieces) + 1):
        part = ",".join(pieces[start:end])
        override = _parsed(quoted(f"{key}={part}"))
        if override and not override.is_sweep_override():
            parts.append(part)
            start = end
    return parts + ([",".join(pieces[start:])] if start < len(pieces) else [])


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None
