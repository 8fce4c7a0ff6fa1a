"""Mappings of the configuration that take any keys, as declared in the schema (``free_mapping``)."""

from __future__ import annotations

import re
from operator import attrgetter

from glci_dist.config import Config
from glci_dist.config.fields import Rule, free_in
from glci_dist.errors import UserError

FREE = free_in(Config)
"""By key, with the rule for the mapping's values. Each counts as one value when configurations are compared."""

_FREED = re.compile(rf"\+\+(?=(?:{'|'.join(map(re.escape, FREE))})[.=])")


def freed(word: str) -> str:
    """An override with the ``++`` that Hydra requires to add keys, if its key is in a free mapping."""
    plain = word.lstrip("+")
    key = plain.partition("=")[0]
    return f"++{plain}" if any(key == name or key.startswith(f"{name}.") for name in FREE) else word


def as_given(said: str) -> str:
    """An error message about an override, without the ``++`` of ``freed``."""
    return _FREED.sub("", said, count=1)


def rule_for(key: str) -> Rule | None:
    """The rule for the value of ``key`` in a free mapping, if there is one."""
    return next((rule for name, rule in FREE.items() if key.startswith(f"{name}.")), None)


def check(config: Config) -> None:
    """Raise ``UserError`` for a value that breaks its mapping's rule, which OmegaConf does not check."""
    for name, rule in FREE.items():
        for key, value in attrgetter(name)(config).items():
            if rule and not rule.holds(value):
                raise UserError(f"{name}.{key}={value} {rule.otherwise}")
