"""Hides credentials in urls, and compares urls without them.

A url can contain a user and a password before its host, and a signature or a token in its query. They are for
the server alone: everything that is written or printed passes through ``without_secrets``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

HIDDEN = "***"
"""Replaces a credential."""

# Query parameters that are no credentials. All others are hidden, as each service has its own names.
_PLAIN = ("v", "version", "versionid", "ref", "rev", "revision", "branch", "tag", "download", "dl", "raw")

# Also malformed urls, which are printed when they are refused.
_SCHEME = r"(?:[A-Za-z][A-Za-z0-9+.-]{0,20}://|\b(?:https?|s3):)/*"
# Up to the end of the line or the next url, as a password may contain spaces and quotes.
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
    """``text`` with the credentials of every url replaced by ``***``; unchanged if there are none.

    If it is unclear where a credential ends, more is hidden than necessary: a url with a ``:`` in its first part is
    hidden up to the last ``@`` of the line.
    """
    return _hide(text, f"{HIDDEN}@", lambda name: f"{name}={HIDDEN}" if name else HIDDEN)


def same_url(url: str) -> str:
    """``url`` without credentials: equal for two urls that differ only in their credentials, hidden or not."""
    return _hide(url, "", lambda _: None)


def hides_secrets(url: str) -> bool:
    """Whether ``without_secrets`` removed credentials from ``url``."""
    return _HIDES.search(url) is not None


def without_secrets_in(value: Any) -> Any:
    """``without_secrets`` for every string in nested lists, tuples (which become lists) and mappings."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: without_secrets_in(each) for key, each in value.items()}
    return [without_secrets_in(each) for each in value] if isinstance(value, list | tuple) else value


def _hide(text: str, user: str, replace: Callable[[str], str | None]) -> str:
    def url(match: re.Match[str]) -> str:
        scheme, rest = match.groups()
        if scheme.lower().startswith("file:///"):
            # A path, which may contain any characters.
            return match[0]
        mark = _USERINFO.match(rest)
        before = mark[0] if mark else ""
        rest = rest[len(before) :]
        address = rest.split(maxsplit=1)[0] if rest[:1].strip() else ""
        closing = _CLOSING.search(address)
        assert closing is not None
        path, *words = _SIGN.split(address[: closing.start()])
        if path and _SIGN.search(before):
            # The @ may be in a query, so that a credential may continue after it.
            path = replace("") or ""
        return scheme + (user if mark else "") + path + _parameters(words, replace, scheme) + rest[closing.start() :]

    return _URL.sub(url, text)


def _parameters(words: list[str], replace: Callable[[str], str | None], scheme: str) -> str:
    """The parameters of a query and a fragment; ``words``: separators and parameters, alternating."""
    shown = ""
    for sign, part in zip(words[::2], words[1::2], strict=True):
        name, _, value = part.partition("=")
        # Object names in S3 may contain these separators.
        is_name = "=" not in part and scheme.lower().startswith("s3:")
        is_plain = not part or name.lower() in _PLAIN or is_name
        # A token without a name may end in = (base64).
        kept = part if is_plain else replace(name if value.strip("=") else "")
        if kept is not None:
            shown += f"{sign if shown else words[0]}{kept}"
    return shown
