"""Describes content that came in place of an expected file: a login page, an error report, nothing."""

from __future__ import annotations

import json
import re

HEAD = 4096
"""Bytes of a file's start that are enough to describe it."""

_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.I | re.S)
_ERROR = re.compile(r"<Code>(.*?)</Code>|<Message>(.*?)</Message>", re.S)
_MAGIC = {
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file",
    b"\x93NUMPY": "a numpy file",
    b"%PDF": "a PDF file",
    b"version https://git-lfs": "a pointer of git-lfs (run git lfs pull where it is kept)",
}
_PHOTOS = {b"\xff\xd8\xff": "a JPEG photo", b"\x89PNG": "a PNG picture"}
_VIDEOS = (b"iso", b"mp4", b"qt", b"M4V", b"avc1", b"3g", b"dash", b"MSNV")
"""First letters of the brands of videos; HEIC and AVIF have the same container with other brands."""


def describe(content: bytes) -> str | None:
    """What ``content`` is, in a few words, if it is neither an index nor a shard; None: unknown."""
    if not content.strip():
        return "an empty answer" if not content else "blank"
    if known := known_file(content) or _by_magic(content, _PHOTOS):
        return known
    if b"\0" in content[:HEAD]:
        return "a binary file"
    text = content.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").strip()
    if text.startswith("<"):
        return _markup(text)
    if text.startswith(("{", "[")):
        return _json(text)
    return f"text that begins with {_short(text, 60)!r}"


def known_file(content: bytes) -> str | None:
    """The file type of ``content`` (or of a file that begins so), among those that often replace another; else None."""
    if content[4:8] == b"ftyp" and content[8:12].startswith(_VIDEOS):
        return "a video (MP4 or QuickTime)"
    if content[257:262] == b"ustar":
        return "a tar"
    return _by_magic(content, _MAGIC)


def _by_magic(content: bytes, names: dict[bytes, str]) -> str | None:
    return next((name for magic, name in names.items() if content.startswith(magic)), None)


def _markup(text: str) -> str:
    said = [_short(code or message, 80) for code, message in _ERROR.findall(text)]
    title = _TITLE.search(text)
    if said or (text.startswith("<?xml") and "<html" not in text.lower()):
        return f"an XML answer ({': '.join(said)})" if said else "an XML file"
    named = f" titled {_short(title[1], 80)!r}" if title and title[1].strip() else ""
    listing = title is not None and re.match(r"(index of|directory listing)", title[1].strip(), re.I)
    return f"a web page{named} ({'a listing of files?' if listing else 'a login page?'})"


def _json(text: str) -> str | None:
    """Describes JSON of another kind; None if it is malformed, or an index of another version."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return "a JSON file of another kind (no mapping)"
    if "format" in document or "shards" in document:
        return None
    said = next((document[key] for key in ("error", "message", "detail", "errors") if document.get(key)), None)
    if said is not None:
        return f"a JSON answer that says {_short(said if isinstance(said, str) else json.dumps(said), 80)!r}"
    keys = ", ".join(list(document)[:4])
    return f"a JSON file of another kind (its keys: {keys or 'none'})"


def _short(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
