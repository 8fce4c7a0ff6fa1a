"""Reads configurations that are stored in a run's folder or checkpoint, by this version or another one.

Keys of another version are not an error: known keys are read, unknown ones are reported. ``changes`` compares such a
configuration with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from glci_dist import compose, free_keys
from glci_dist.config import Config, DataConfig, PhaseConfig
from glci_dist.errors import UserError
from glci_dist.override_errors import explain

GONE, NEW = "(no such key in this version)", "(no such key in the version that wrote it)"
"""Placeholders in a change for a value that one of the versions lacks."""

_EMPTY = Config(name="", data=DataConfig(shards=""))


@dataclass(frozen=True)
class StoredConfig:
    """A stored configuration, and its differences from this version's schema."""

    config: Config
    """Keys that it lacks, or whose value is unknown, have this version's default, which means "as before"."""
    gone: Mapping[str, Any] = field(default_factory=dict)
    """Keys that this version does not have, or whose value it does not accept, with the stored value."""
    new: Mapping[str, Any] = field(default_factory=dict)
    """Keys of this version that it lacks, with their default."""

    def notes(self) -> list[str]:
        """The differences from this version's schema, a line per kind."""
        told = []
        if self.gone:
            told.append(f"keys or values that this version does not know: {_pairs(self.gone)}")
        if self.new:
            told.append(f"keys that are new in this version: {_pairs(self.new)}")
        return told

    def changes(self, now: Config) -> list[str]:
        """The keys in which it differs from ``now``, with both values, or ``GONE`` and ``NEW``."""
        found = []
        for line in compose.differences(self.config, now):
            key, _, values = line.partition(": ")
            if key in self.gone or (key == "name" and not self.config.name):
                continue
            found.append(f"{key}: {NEW} / {values.partition(' / ')[2]}" if key in self.new else line)
        flat = compose.flat(now)
        return found + [f"{key}: {value} / {flat.get(key, GONE)}" for key, value in self.gone.items()]


def read(path: Path) -> StoredConfig:
    """The configuration in a run's file; raises ``UserError`` if it holds none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        why = "is a link to what is not there" if path.is_symlink() else "does not exist"
        raise UserError(f"{path} {why}: name the folder of a run, such as runs/demo") from error
    except ValueError as error:
        raise UserError(f"{path} is no configuration: it is no text") from error
    except OSError as error:
        raise UserError(f"{path} is no configuration: it cannot be read: {error.strerror}") from error
    return parse(text, path)


def parse(text: str, source: Path) -> StoredConfig:
    """The configuration in ``text``, YAML from ``to_yaml``; ``source``: for error messages. Raises ``UserError``."""
    try:
        made = OmegaConf.create(text)
        found = OmegaConf.to_container(made, resolve=True) if OmegaConf.is_dict(made) else None
    # OmegaConf raises OSError or ValueError for text that is no mapping.
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, AttributeError) as error:
        raise UserError(f"{source} is no configuration: {_what(error)}") from error
    if not isinstance(found, dict) or not found or not any(isinstance(key, str) for key in found):
        what = "empty" if found == {} or not text.strip() else "no mapping of keys"
        raise UserError(f"{source} is no configuration: it is {what}")
    gone: dict[str, Any] = {}
    new: dict[str, Any] = {}
    known = _known(found, OmegaConf.to_container(OmegaConf.structured(Config)), "", gone, new)
    if not known:
        raise UserError(f"{source} is no configuration of a run: it has none of its keys ({', '.join(list(gone)[:3])})")
    config = _merged(known)
    if config is None:
        # Groups first, as each attempt merges the whole schema.
        unfit = {name: value for name, value in known.items() if _merged({name: value}) is None}
        for key, value in _leaves(unfit):
            if _merged(_nested(key, value)) is None:
                gone[key] = value
                _remove(known, key)
        config = _merged(known)
    if config is None:
        raise UserError(f"{source} is no configuration of this version: its values do not fit together")
    return StoredConfig(config, gone, new)


def _known(
    found: Mapping[Any, Any], schema: Any, prefix: str, gone: dict[str, Any], new: dict[str, Any]
) -> dict[str, Any]:
    """The keys of ``found`` that the schema has; adds the others to ``gone``, and missing ones to ``new``."""
    known: dict[str, Any] = {}
    for name, value in found.items():
        key = f"{prefix}{name}"
        if name not in schema:
            gone.update(_leaves({key: value}))
        elif key == "phases" and isinstance(value, Mapping):
            known[name] = {
                phase: {"steps": 0, **_known(keys, vars(PhaseConfig(steps=0)), f"phases.{phase}.", gone, new)}
                if isinstance(keys, Mapping)
                else keys
                for phase, keys in value.items()
            }
        elif _is_group(schema[name]) and isinstance(value, Mapping) and key not in free_keys.FREE:
            known[name] = _known(value, schema[name], f"{key}.", gone, new)
        else:
            known[name] = value
    for name, value in schema.items():
        # The name is that of the run's folder.
        if name in found or f"{prefix}{name}" in ("name", "phases"):
            continue
        key = f"{prefix}{name}"
        new.update({key: value} if key in free_keys.FREE else _leaves({key: value}))
    return known


def _merged(known: Mapping[str, Any]) -> Config | None:
    """The schema with these values; None if it does not accept one."""
    try:
        whole = OmegaConf.merge(OmegaConf.structured(_EMPTY), OmegaConf.create(dict(known)))
        config = OmegaConf.to_object(whole)
    except (OmegaConfBaseException, ValueError, TypeError):
        return None
    return config if isinstance(config, Config) else None


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _leaves(value: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """The dotted keys of a nested mapping, with their values."""
    found: list[tuple[str, Any]] = []
    for name, each in value.items():
        inner = _leaves(each) if _is_group(each) else None
        found += [(str(name), each)] if inner is None else [(f"{name}.{key}", leaf) for key, leaf in inner]
    return found


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    if key.startswith("phases.") and "steps" not in value["phases"][key.split(".")[1]]:
        value["phases"][key.split(".")[1]]["steps"] = 0
    return dict(value)


def _remove(known: dict[str, Any], key: str) -> None:
    *groups, name = key.split(".")
    for group in groups:
        known = known[group]
    del known[name]


def _what(error: Exception) -> str:
    """What is wrong with the text, in one line."""
    if isinstance(error, MarkedYAMLError) and error.problem:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return f"{error.problem}{where}"
    return explain(error)


def _pairs(values: Mapping[str, Any], most: int = 8) -> str:
    shown = [f"{key}={value}" for key, value in list(values.items())[:most]]
    return ", ".join(shown) + (f" and {len(values) - most} more" if len(values) > most else "")
