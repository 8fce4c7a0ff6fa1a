"""Credentials in urls: what may be shown and stored of a url, and which urls are the same without them.

A url can carry a user and a password before its host, and a signature or a token in its query. They are for
the server alone: whatever is written or printed goes through ``without_secrets``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

HIDDEN = "***"
"""What stands in the place of a credential."""

# A query's value is taken for a credential unless its name is one of these: services name theirs as they like.
_PLAIN = ("v", "version", "versionid", "ref", "rev", "revision", "branch", "tag", "download", "dl", "raw")

_USERINFO = re.compile(
    r"(?<=://)(?:[^/?#\s]*@"  # the last @ before the path: a password may hold one
    # A password with a / that should have been written %2F; a host with a port has digits here.
    r"|[^/?#@\s:\[]+:(?!\d*(?:[/?#\s'\",;]|$))[^\s]*@)"
)
_QUERY = re.compile(r"(://[^\s?'\"#]*\?)([^\s'\"#]+)")
_CLOSING = re.compile(r"[:;,.)\]}]*$")


def without_secrets(text: str) -> str:
    """``text`` with ``***`` in place of the credentials of every url in it; itself where there are none."""
    if "://" not in text:
        return text
    return _hide(text, f"{HIDDEN}@", lambda name: f"{name}={HIDDEN}" if name else HIDDEN)


def same_url(url: str) -> str:
    """``url`` without credentials: equal for two urls that differ in nothing else, hidden ones among them."""
    bare = _hide(url, "", lambda _: None) if "://" in url else url
    return bare if bare == url else bare.rstrip("?")


def hides_secrets(url: str) -> bool:
    """Whether ``url`` was written by ``without_secrets``, so that its credentials are missing."""
    query = url.partition("?")[2].split("&")
    return f"://{HIDDEN}@" in url or any(part.rpartition("=")[2] == HIDDEN for part in query)


def without_secrets_in(value: Any) -> Any:
    """``without_secrets`` of every text in nested lists and mappings."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: without_secrets_in(each) for key, each in value.items()}
    return [without_secrets_in(each) for each in value] if isinstance(value, list) else value


def _hide(text: str, user: str, replace: Callable[[str], str | None]) -> str:
    def query(match: re.Match[str]) -> str:
        closing = _CLOSING.search(match[2])
        assert closing is not None
        parts = [_parameter(part, replace) for part in match[2][: closing.start()].split("&")]
        return match[1] + "&".join(part for part in parts if part is not None) + closing[0]

    return _QUERY.sub(query, _USERINFO.sub(user, text))


def _parameter(part: str, replace: Callable[[str], str | None]) -> str | None:
    name, equals, value = part.partition("=")
    if not part or name.lower() in _PLAIN or (equals and not value):
        return part
    return replace(name if equals else "")
