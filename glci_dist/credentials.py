"""Refuses credentials in the configuration, for every command, as they would be stored in a run's files.

The values of ``cluster`` are stored in the run's folder and in the batch script, and printed by `glci explain`. The
environment in which a job is submitted reaches the job without being stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from glci_dist.config import ClusterConfig
from glci_dist.errors import UserError
from glci_dist.urls import without_secrets

_NAME = re.compile(
    r"PASSWORD|PASSWD|PASSPHRASE|SECRET|CONNECTION_STRING|(?:API|ACCESS|PRIVATE|AUTH)_?(?:KEY|TOKEN)"
    r"|(?:^|_)(?:PASS|TOKEN|KEY|PAT|JWT|SAS)(?:_|$)|_PWD$"
)
# Names with these endings hold the place or the owner of a credential.
_HARMLESS = ("_FILE", "_PATH", "_DIR", "_ID", "_NAME", "_HOST")
_ASSIGNED = re.compile(r"(?:^|[\s,;&(])([A-Za-z_]\w*)=(\"[^\"]*\"|'[^']*'|[^\s,;]*)")
# References to values that are kept elsewhere, in a shell and in a configuration.
_IN_SHELL = re.compile(r"\$(?:\w+|\{[^}]*\}|\([^)]*\))|`[^`]*`")
_IN_CONFIGURATION = re.compile(r"\$\{[^}]*\}")
_PARTS = re.compile(r"(?<=://)(?:[^/\s:@]*:)?\0@|(?<=[?&;])[\w.-]+=\0(?=[&;\s'\"]|$)")


def check(cluster: ClusterConfig) -> None:
    """Raise ``UserError`` for a credential in the variables, shell lines or sbatch options of ``cluster``."""
    for name, value in cluster.environment.items():
        _check_variable(f"cluster.environment.{name}", name, value)
    for number, line in enumerate(cluster.setup):
        _check_text(f"cluster.setup[{number}]", line)
    for option, value in cluster.sbatch.items():
        _check_text(f"cluster.sbatch.{option}", str(value or ""))


def check_arguments(key: str, arguments: Mapping[str, object]) -> None:
    """Raise ``UserError`` for a credential in the arguments of a component, such as a logger's ``api_key``."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            check_arguments(f"{key}.{name}", value)
        elif isinstance(value, str):
            _check_variable(f"{key}.{name}", name, value)


def check_override(key: str, value: str) -> None:
    """Raise ``UserError`` for a credential in an override of ``cluster``, before any error message can print it."""
    if key.startswith("cluster.environment.") and value.strip("'\"") not in ("", "null"):
        _check_variable(key, key.removeprefix("cluster.environment."), value)
    if key.startswith("cluster."):
        _check_text(key, value)


def holds_url_credentials(text: str) -> bool:
    """Whether a url in ``text`` of a configuration contains credentials; ``${...}`` does not count."""
    return _holds(_without(_IN_CONFIGURATION, text))


def _without(elsewhere: re.Pattern[str], text: str) -> str:
    """``text`` without the credentials in its urls that match ``elsewhere``."""
    return _PARTS.sub("", elsewhere.sub("\0", text))


def _holds(text: str) -> bool:
    return without_secrets(text) != text


def _check_variable(key: str, name: str, value: object) -> None:
    """Check the environment variable ``name``, which is set by ``key``."""
    if not value:
        return
    bare = name.upper()
    url = f"http://{value}" if bare.endswith("_PROXY") and "://" not in str(value) else str(value)
    if (_NAME.search(bare) and not bare.endswith(_HARMLESS)) or _holds(url):
        raise _refused(key, name)


def _check_text(key: str, text: str) -> None:
    """Check a shell line or an option."""
    text = _without(_IN_SHELL, text)
    for name, value in _ASSIGNED.findall(text):
        if not value.strip("\"'").startswith("\0"):
            _check_variable(key, name, value)
    if _holds(text):
        raise _refused(key, "of a url")


def _refused(key: str, what: str) -> UserError:
    return UserError(
        f"{key}: the credential {what} would be stored in the run's files: leave it out, and export it where you "
        "submit or start the run (a job inherits that), or have a line of cluster.setup read it from a file of yours"
    )
