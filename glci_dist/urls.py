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

# A parameter's value is taken for a credential unless its name is one of these: services name theirs as they like.
_PLAIN = ("v", "version", "versionid", "ref", "rev", "revision", "branch", "tag", "download", "dl", "raw")

# Also what was meant to be a url: it is shown in its refusal.
_SCHEME = r"(?:[A-Za-z][A-Za-z0-9+.-]{0,20}://|\b(?:https?|s3):)/*"
# What follows, to the end of the line or to the next url: a password may hold spaces and quotes.
_URL = re.compile(rf"({_SCHEME})((?:(?!(?<=\s)\S*?{_SCHEME}|(?<=[\[\](){{}}<>'\",;|`]){_SCHEME}).)*)", re.I)
_USERINFO = re.compile(
    r"(?:[^/?#\s:]*:.*"  # a user and a password, or a host and a port: an @ that follows may end a password
    r"|[^?#\s]*:\S*"  # the same with a / in the user
    r"|[^/?#\s]*)@"  # a user or a token alone
)
_SIGN = re.compile(r"([?#&;])")
_CLOSING = re.compile(r"[:;,.)\]}>'\"`\\]*$")
_HIDES = re.compile(rf"[/:]{re.escape(HIDDEN)}@|[?#&;=]{re.escape(HIDDEN)}(?:[&;#]|$)")


def without_secrets(text: str) -> str:
    """``text`` with ``***`` in place of the credentials of every url in it; itself where there are none.

    Where it is not clear what belongs to a credential, more is hidden than need be: in a line, a url with a ``:`` in
    its first part and an ``@`` anywhere behind it is hidden up to that.
    """
    return _hide(text, f"{HIDDEN}@", lambda name: f"{name}={HIDDEN}" if name else HIDDEN)


def same_url(url: str) -> str:
    """``url`` without credentials: equal for two urls that differ in nothing else, hidden ones among them."""
    return _hide(url, "", lambda _: None)


def hides_secrets(url: str) -> bool:
    """Whether ``url`` was written by ``without_secrets``, so that its credentials are missing."""
    return _HIDES.search(url) is not None


def without_secrets_in(value: Any) -> Any:
    """``without_secrets`` of every text in nested lists, tuples (which become lists) and mappings."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: without_secrets_in(each) for key, each in value.items()}
    return [without_secrets_in(each) for each in value] if isinstance(value, list | tuple) else value


def _hide(text: str, user: str, replace: Callable[[str], str | None]) -> str:
    def url(match: re.Match[str]) -> str:
        scheme, rest = match.groups()
        if scheme.lower().startswith("file:///"):
            # A path, with whatever signs.
            return match[0]
        mark = _USERINFO.match(rest)
        before = mark[0] if mark else ""
        rest = rest[len(before) :]
        address = rest.split(maxsplit=1)[0] if rest[:1].strip() else ""
        closing = _CLOSING.search(address)
        assert closing is not None
        path, *words = _SIGN.split(address[: closing.start()])
        if path and _SIGN.search(before):
            # That @ may stand in a query, and a credential go on behind it.
            path = replace("") or ""
        return scheme + (user if mark else "") + path + _parameters(words, replace, scheme) + rest[closing.start() :]

    return _URL.sub(url, text)


def _parameters(words: list[str], replace: Callable[[str], str | None], scheme: str) -> str:
    """Those of a query and a fragment: ``words`` are signs and, behind each, what it stands before."""
    shown = ""
    for sign, part in zip(words[::2], words[1::2], strict=True):
        # The name of an object in S3 may hold these signs.
        is_name = "=" not in part and scheme.lower().startswith("s3:")
        kept = part if is_name else _parameter(part, replace)
        if kept is not None:
            shown += f"{sign if shown else words[0]}{kept}"
    return shown


def _parameter(part: str, replace: Callable[[str], str | None]) -> str | None:
    name, _, value = part.partition("=")
    if not part or name.lower() in _PLAIN:
        return part
    # A token alone may end in = as base64 does.
    return replace(name if value.strip("=") else "")
