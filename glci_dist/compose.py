"""Composes, checks and serialises a run's configuration, before anything starts.

An unknown key, a wrong type or a value that breaks a rule ends the command with one line and exit
code 2 (``UserError``).
"""

from __future__ import annotations

import locale
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from glci_dist import credentials, free_keys
from glci_dist.components import components
from glci_dist.config import Config, PhaseConfig
from glci_dist.data.names import printable
from glci_dist.errors import UserError
from glci_dist.override_errors import explain, removed_key, unknown_key
from glci_dist.rules import check
from glci_dist.rules import check_world as check_world
from glci_dist.rules import unknown_choice as unknown_choice
from glci_dist.urls import same_url, without_secrets_in

SEARCH_PATH = "hydra.searchpath"
"""The override that names folders with YAML of the user's, beside ``configs/``."""


def load(overrides: Sequence[str] = ()) -> Config:
    """Compose the configuration from ``configs/`` and the overrides, and check it.

    ``overrides``: in Hydra's syntax, for example ``experiment=faces64`` or ``global_batch=96``.
    Raises ``UserError`` for an unknown key, a wrong type, or a value that breaks a rule.
    """
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    # For recipes and tuning/, so that what follows from an experiment's size or batch also follows an override of it.
    OmegaConf.register_new_resolver("half_size", lambda size: 4 * max(1, round(size / 8)), replace=True)
    OmegaConf.register_new_resolver("half_batch", _half_batch, replace=True)
    OmegaConf.register_new_resolver("twice", lambda number: 2 * number, replace=True)
    for word in overrides:
        if word.lstrip("+").startswith("tuning="):
            raise UserError(f"{word}: the tuning follows from experiment and recipe: ~tuning leaves it out")
        _check_text(word)
        search_path(word)
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = compose("config", overrides=[quoted(free_keys.freed(word)) for word in overrides])
        _check_keys(list(_flat(composed)))
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise UserError(f"{missing[0]} has no value: add {missing[0]}=... to the command")
        config = OmegaConf.to_object(composed)
    # Hydra raises ValueError for a group that is set to null.
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(free_keys.as_given(explain(error))) from error
    except yaml.YAMLError as error:
        raise UserError(f"a file of the configuration is no YAML: {' '.join(str(error).split())}") from error
    assert isinstance(config, Config)
    credentials.check(config.cluster)
    free_keys.check(config)
    check(config)
    for component in components(config):
        credentials.check_arguments(component.key, component.arguments)
    return config


def _half_batch(batch: int, accumulation: int) -> int:
    """Half of a batch, for batch norm's groups; 0 (the whole batch) where that is no whole number, less than 16, or
    more than a micro-batch has on one of two ranks."""
    return batch // 2 if batch >= 32 and batch % 2 == 0 and accumulation == 1 else 0


def resolved(config: Config) -> dict[str, Any]:
    """The whole configuration as a nested mapping, without credentials in urls."""
    return dict(without_secrets_in(OmegaConf.to_container(OmegaConf.structured(config))))


def to_yaml(config: Config) -> str:
    """``resolved`` as YAML, as it is stored and printed."""
    return OmegaConf.to_yaml(OmegaConf.create(resolved(config)))


def differences(one: Config, other: Config) -> list[str]:
    """The dotted keys in which two configurations differ, with both values.

    Credentials in urls are ignored, as stored configurations have none; so is a phase of 0 steps that the other
    configuration does not have.
    """
    one, other = _without_idle_phases(one, other), _without_idle_phases(other, one)
    flat_one, flat_other = flat(one), flat(other)
    # Unlike for other keys, the order of phases matters.
    flat_one["phases"], flat_other["phases"] = list(one.phases), list(other.phases)
    keys = [*flat_one, *(key for key in flat_other if key not in flat_one)]
    return [
        f"{key}: {without_secrets_in(flat_one.get(key))} / {without_secrets_in(flat_other.get(key))}"
        for key in keys
        if _bare(flat_one.get(key)) != _bare(flat_other.get(key))
    ]


def keys(config: Config) -> list[str]:
    """Every dotted key of a configuration."""
    return list(flat(config))


def flat(config: Config) -> dict[str, Any]:
    """Every dotted key of a configuration, with its value."""
    return _flat(OmegaConf.structured(config))


def config_folder() -> Path:
    """The folder ``configs/``: inside the installed package, or next to the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _check_keys(composed: list[str]) -> None:
    """Refuse keys that were added by ``+key`` or removed by ``~key``, which Hydra does not check."""
    schema = keys(Config())
    for key in composed:
        in_phase = key.startswith("phases.") and key.split(".")[-1] in PhaseConfig.__dataclass_fields__
        if not in_phase and key not in schema:
            raise UserError(unknown_key(key))
    for key in schema:
        if key not in composed and key != "phases":
            raise UserError(removed_key(key))


def _check_text(word: str) -> None:
    """Raise ``UserError`` for an override that does not decode in this locale, as it could not be stored."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{printable(word)} is no text in this shell's encoding ({locale.getencoding()}): choose a locale of UTF-8 "
            "(export LC_ALL=C.UTF-8), or write it in plain letters"
        ) from None


def search_path(word: str) -> list[Path]:
    """The folders of an override of ``hydra.searchpath``; none for any other word.

    Raises ``UserError`` for one that does not exist, of which Hydra only warns.
    """
    key, _, value = word.partition("=")
    if key != SEARCH_PATH:
        return []
    folders = [Path(each.removeprefix("file://")) for each in re.split(r"[\[\],'\"]+", value) if each]
    for folder in folders:
        if not (folder.is_absolute() and folder.is_dir()):
            raise UserError(f"{SEARCH_PATH}={folder} is no folder: give its absolute path, [file:///home/me/configs]")
    return folders


def quoted(word: str) -> str:
    """``key=value``, quoted as Hydra requires for urls (special characters in queries) and non-ASCII values."""
    match = re.fullmatch(r"([+\w.@]+=)([A-Za-z][A-Za-z0-9+.-]*://[^'\"\\]*)", word)
    if match is None and not word.isascii():
        match = re.fullmatch(r"([+\w.@]+=)([\w/.+-][\w/.+ -]*)", word)
    return f"{match[1]}'{match[2]}'" if match else word


def _without_idle_phases(config: Config, other: Config) -> Config:
    """``config`` without phases of 0 steps that ``other`` lacks."""
    kept = {name: phase for name, phase in config.phases.items() if phase.steps or name in other.phases}
    return replace(config, phases=kept)


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_bare(each) for each in value]
    return same_url(value) if isinstance(value, str) else value


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key in node:
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if f"{prefix}{key}" in free_keys.FREE:
            flat[f"{prefix}{key}"] = OmegaConf.to_container(value, resolve=True) if value else {}
        elif OmegaConf.is_dict(value):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value or ()) if OmegaConf.is_list(value) else value
    return flat
