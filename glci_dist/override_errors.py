"""Converts errors of Hydra and OmegaConf about an override into one line that a user can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from glci_dist import free_keys
from glci_dist.config import Config, PhaseConfig
from glci_dist.config.fields import walk

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "list[int]": "a list of whole numbers",
    "list[float]": "a list of numbers",
}
_PHASES = ("coarser", "coarse", "completion", "discriminator", "joint")
_MODERN, _OF_ALL = _PHASES[:2], _PHASES[2:]
"""The phases that recipe=modern alone has, and those that every recipe has."""
_GROUPS = ("recipe", "experiment")


def explain(error: Exception) -> str:
    """What is wrong with the override for which Hydra or OmegaConf raised ``error``."""
    if isinstance(error, OverrideParseException):
        # Values of cluster.* may contain credentials.
        given, key = str(error.override), str(error.override).partition("=")[0]
        shown = f"{key}=..." if key.lstrip("+").startswith("cluster.") else given
        return (
            f"{shown!r} is no override: write KEY=VALUE, and quote twice what has spaces or "
            "signs in it, as in 'KEY=\"a=b c\"'"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        known = f"choose one of {', '.join(error.options)}" if error.options else f"write {group}=NAME"
        return f"{group}={name} is not known: {known}"
    standing = re.match(r"Could not append to config. An item is already at '(.*)'", str(error))
    if standing:
        return f"{standing[1]} stands in the configuration already: write {standing[1]}=... without the +"
    cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
    key = getattr(cause, "full_key", None) or ""
    text = _first_line(cause)
    if text.startswith("Config group override must be"):
        return "a group's choice must be a string, the name of a file in configs/: write recipe=modern, not recipe=null"
    if "${experiment}-${recipe}" in text:
        return "a run has one recipe and one experiment: choose each by one name, and override its values"
    unknown = re.match(r"Interpolation key '(.*)' not found|.* resolving interpolation: \"?(.*?)\"?$", text)
    if unknown:
        what = unknown[2] or f"${{{unknown[1]}}} stands for no key of the configuration"
        return f"{key}: {what}: write the value itself"
    if re.match(r"Key '.*' (is )?not in", text):
        asked = re.match(r"Could not override '(.*)'", str(error))
        # OmegaConf names the innermost known group, Hydra the whole key.
        return unknown_key(asked[1] if asked and asked[1].startswith(key) else key)
    merging = re.match(r"Error merging override ([+~]*)([^=]*)", _first_line(error))
    if merging is None:
        return f"{key}: {text}" if key and key not in text else text
    given = _first_line(error).removeprefix("Error merging override ")
    if merging[1] == "~":
        return removed_key(merging[2])
    if rule := free_keys.rule_for(merging[2]):
        return f"{given} {rule.otherwise}"
    if merging[2].startswith("phases.") and "PhaseConfig" in text:
        return unknown_key(merging[2])
    kind = dict(key_types()).get(re.sub(r"^phases\.[^.]+\.", "phases.*.", merging[2]))
    return f"{given} has the wrong type: {merging[2]} must be {_words(kind)}" if kind else f"{given}: {text}"


def unknown_key(key: str) -> str:
    """The message that ``key`` does not exist, with a suggestion."""
    if key in _GROUPS:
        return f"{key} is a choice of a file in configs/{key}: write {key}=NAME"
    group, phase, inner = (*key.split(".", 2), "", "")[:3]
    if group == "phases" and phase not in _OF_ALL and inner in ("", *PhaseConfig.__dataclass_fields__):
        return (
            f"{key}: the recipe has no phase {phase!r}, only {', '.join(_OF_ALL)} "
            f"(modern: {' and '.join(_MODERN)} too); "
            f"to add one: '+phases={{{phase}: {{steps: 100, ...}}}}'"
        )
    known = [name.replace("*", each) for each in dict.fromkeys([phase, *_PHASES]) for name, _ in key_types()]
    close = difflib.get_close_matches(key, [*known, *_GROUPS], 1)
    same_end = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near = (close or same_end)[:1]
    hint = f"did you mean {near[0]}?" if near else "`glci train --help` says where the keys are explained"
    return f"{key} is no configuration key: {hint}"


def removed_key(key: str) -> str:
    """The message that ``~key`` is not possible."""
    return f"~{key}: a key cannot be removed from the configuration; give it another value"


def key_types() -> Iterator[tuple[str, str]]:
    """Every dotted key of the schema, groups included, with its type; those of phases are ``phases.*.<key>``."""
    for key, each in walk(Config):
        yield key, str(each.type)
        if key == "phases":
            yield from ((f"phases.*.{name}", str(inner.type)) for name, inner in walk(PhaseConfig))


def _words(kind: str) -> str:
    plain = kind.removesuffix(" | None")
    return _WORDS.get(plain, "a group of keys") + (" or null" if plain != kind else "")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
