"""Where shards may be read from: a local folder, or a http, https or s3 url.

Whatever reads a location asks ``check_location`` first: WebDataset and fsspec both know urls that
run a shell command or chain to other file systems, and a configuration may come from a stranger.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

from glci_dist.errors import UserError

REMOTE_SCHEMES = ("http", "https", "s3")
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")


def check_location(location: str) -> None:
    """Raise UserError unless ``location`` is a local path or a file, http, https or s3 url."""
    scheme = _scheme(location)
    if scheme == "pipe":
        raise UserError(
            f"{location!r}: a 'pipe:' url would run a shell command and is refused; "
            "give a local folder or a http, https or s3 url"
        )
    if scheme and scheme not in ("file", *REMOTE_SCHEMES):
        raise UserError(
            f"{location!r}: urls of the scheme {scheme!r} are refused, as they may run commands; "
            "give a local folder or a http, https or s3 url (a local path with a colon: ./a:b)"
        )
    if scheme and not re.match(r"[A-Za-z0-9]+://[^/]" if scheme != "file" else r"file:///", location, re.I):
        raise UserError(f"{location!r} is not a whole url; write it as {_example(scheme)}")
    if scheme and "::" in location:
        raise UserError(f"{location!r}: chained urls ('::') are refused; give one plain url or a folder")


def is_remote(location: str) -> bool:
    """Whether ``location`` (already checked) is a http, https or s3 url."""
    return _scheme(location) in REMOTE_SCHEMES


def local_path(location: str) -> str:
    """The path of a local ``location``: itself, or a file url's path."""
    return unquote(location[len("file://") :]) if _scheme(location) == "file" else location


def join(root: str, name: str) -> str:
    """The location of file ``name`` (relative, with ``/``) below ``root``; UserError where it leaves it."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise UserError(f"{name!r} in the index of {root} is no file name below it; make the index anew")
    escaped = name if _scheme(root) in ("", "s3") else quote(name)
    return f"{root.rstrip('/')}/{escaped}"


def _scheme(location: str) -> str:
    match = _SCHEME.match(location)
    return match.group(1).lower() if match else ""


def _example(scheme: str) -> str:
    return {"file": "file:///folder", "s3": "s3://bucket/folder"}.get(scheme, f"{scheme}://host/folder")
