"""Mappings of the configuration whose keys are the user's, as the schema declares them (``free_mapping``)."""

from __future__ import annotations

import re
from operator import attrgetter

from glci_dist.config import Config
from glci_dist.config.fields import Rule, free_in
from glci_dist.errors import UserError

FREE = free_in(Config)
"""Each is one value where configurations are compared; with the rule for its values."""

_FREED = re.compile(rf"\+\+(?=(?:{'|'.join(map(re.escape, FREE))})[.=])")


def freed(word: str) -> str:
    """An override that may also add, where the keys are the user's: Hydra asks for a + there."""
    plain = word.lstrip("+")
    key = plain.partition("=")[0]
    return f"++{plain}" if any(key == name or key.startswith(f"{name}.") for name in FREE) else word


def as_given(said: str) -> str:
    """What was said of an override as it was before ``freed``."""
    return _FREED.sub("", said, count=1)


def rule_for(key: str) -> Rule | None:
    """The rule for the value of ``key``, which is the user's; None: there is none."""
    return next((rule for name, rule in FREE.items() if key.startswith(f"{name}.")), None)


def check(config: Config) -> None:
    """Raise ``UserError`` for a value that breaks its mapping's rule, which slips past OmegaConf's own check."""
    for name, rule in FREE.items():
        for key, value in attrgetter(name)(config).items():
            if rule and not rule.holds(value):
                raise UserError(f"{name}.{key}={value} {rule.otherwise}")
