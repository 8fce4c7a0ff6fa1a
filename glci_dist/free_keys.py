"""Mappings of the configuration whose keys are the user's: options of sbatch, variables, components by ``_target_``."""

from __future__ import annotations

from glci_dist.config import Config
from glci_dist.errors import UserError

_WORDS = ("cluster.environment", "cluster.sbatch")
FREE = (
    *_WORDS,
    *("model.completion.custom", "model.discriminator.custom", "holes.custom"),
    *("losses.terms", "losses.penalties", "metrics", "callbacks", "loggers"),
)
"""Each is one value where configurations are compared."""

RULE = "each value is one word, or null"


def freed(word: str) -> str:
    """An override that may also add, where the keys are the user's: Hydra asks for a + there."""
    plain = word.lstrip("+")
    key = plain.partition("=")[0]
    return f"++{plain}" if any(key == name or key.startswith(f"{name}.") for name in FREE) else word


def check(config: Config) -> None:
    """Raise ``UserError`` for a value that is no single word, which slips past OmegaConf's own check."""
    for name, mapping in zip(_WORDS, (config.cluster.environment, config.cluster.sbatch), strict=True):
        for key, value in mapping.items():
            if not isinstance(value, str | None):
                raise UserError(f"{name}.{key}={value} has the wrong type: {RULE}")
