"""Locations of shards: a local folder, or a http, https or s3 url.

Everything that reads a location calls ``check_location`` first: WebDataset and fsspec both have urls that run a shell
command or chain to other file systems, and a configuration may come from a stranger.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit

from glci_dist.errors import UserError
from glci_dist.urls import HIDDEN, hides_secrets, same_url, without_secrets

REMOTE_SCHEMES = ("http", "https", "s3")
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")


def check_location(location: str) -> None:
    """Raise UserError unless ``location`` is a local path or a file, http, https or s3 url."""
    address, mark, query = location.partition("?")
    # ``without_secrets`` takes a space for the url's end, and would show what follows.
    scheme, shown = _scheme(location), without_secrets(address + mark + "%20".join(query.split()))
    if scheme == "pipe":
        raise UserError(
            f"{shown!r}: a 'pipe:' url would run a shell command and is refused; "
            "give a local folder or a http, https or s3 url"
        )
    if scheme and scheme not in ("file", *REMOTE_SCHEMES):
        raise UserError(
            f"{shown!r}: urls of the scheme {scheme!r} are refused, as they may run commands; "
            "give a local folder or a http, https or s3 url (a local path with a colon: ./a:b)"
        )
    if scheme and not re.match(r"[A-Za-z0-9]+://[^/]" if scheme != "file" else r"file:///", location, re.I):
        raise UserError(f"{shown!r} is not a whole url; write it as {_example(scheme)}")
    # An IPv6 host in brackets holds '::' too.
    if scheme and "::" in re.sub(r"://([^/?#]*@)?\[[0-9A-Fa-f:.%]+\]", "://", location, count=1):
        raise UserError(f"{shown!r}: chained urls ('::') are refused; give one plain url or a folder")
    if scheme in REMOTE_SCHEMES:
        _check_remote(location, scheme, shown)


def _check_remote(location: str, scheme: str, shown: str) -> None:
    if hides_secrets(location):
        raise UserError(
            f"{shown!r}: credentials are never stored, so they are missing here; give the url with them again, "
            "or keep them in ~/.netrc and leave them out"
        )
    if scheme == "s3":
        if f"//{HIDDEN}@" in shown:
            raise UserError(
                f"{shown!r}: a s3 url holds no credentials; give s3://bucket/folder, and them by AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, by AWS_PROFILE or in ~/.aws/credentials"
            )
        # A ? or # alone may be part of an s3 name.
        if re.search(r"[?#][A-Za-z][\w-]*=", location):
            raise UserError(f"{shown!r}: a s3 url has no query; give s3://bucket/folder, or the signed https url")
        return
    if "#" in location:
        raise UserError(f"{shown!r}: what follows '#' is never sent to a server; write it as %23")
    if re.search(r"\s", location.partition("?")[2]):
        raise UserError(f"{shown!r}: there is a space in its query; write it as %20")
    try:
        parts = urlsplit(location)
        host, _ = parts.hostname, parts.port
        is_clear = urlsplit(same_url(location)).netloc == parts.netloc.rpartition("@")[2]
    except ValueError as fault:
        # The error's own message contains the url.
        raise UserError(
            f"{shown!r} is no url: its host or port cannot be read (in a password, / is %2F and ? is %3F)"
        ) from fault
    if not is_clear:
        # Otherwise the part of a password before its / would be looked up as host and port.
        raise UserError(
            f"{shown!r}: an @ behind the host may end a password; write @ as %40 behind the host, and / as %2F and "
            "? as %3F in a password"
        )
    if not host:
        raise UserError(f"{shown!r} names no host; write it as {_example(scheme)}")


def is_remote(location: str) -> bool:
    """Whether ``location`` (already checked) is a http, https or s3 url."""
    return _scheme(location) in REMOTE_SCHEMES


def local_path(location: str) -> str:
    """The path of a local ``location``: itself, or a file url's path."""
    return unquote(location[len("file://") :]) if _scheme(location) == "file" else location


def without_slash(location: str) -> str:
    """``location`` without slashes at the end of its path; a query stays as it is."""
    path, query = _split_query(location)
    return (path.rstrip("/") or "/") + query


def join(root: str, name: str) -> str:
    """The location of file ``name`` (relative, with ``/``) below ``root``; UserError if it is not below it.

    A query of ``root`` (http, https), such as a token, is appended to the file's path.
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise UserError(
            f"{name!r} in the index of {without_secrets(root)} is no file name below it; make the index anew"
        )
    escaped = name if _scheme(root) in ("", "s3") else quote(name)
    path, query = _split_query(root)
    return f"{path.rstrip('/')}/{escaped}{query}"


def _split_query(location: str) -> tuple[str, str]:
    """The part before the query, and the query with its ``?``; only http urls have one."""
    if _scheme(location) not in ("http", "https"):
        return location, ""
    path, mark, query = location.partition("?")
    return path, mark + query


def _scheme(location: str) -> str:
    match = _SCHEME.match(location)
    return match.group(1).lower() if match else ""


def _example(scheme: str) -> str:
    return {"file": "file:///folder", "s3": "s3://bucket/folder"}.get(scheme, f"{scheme}://host/folder")
