"""Refuses to overwrite files of other programs that have the names of ours."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import numpy as np

from glci_dist.data.folders import read_file
from glci_dist.data.index import INDEX_NAME, table_dtype
from glci_dist.errors import UserError

# Matches a damaged index of ours too.
_OUR_INDEX = re.compile(rb'\s*\{\s*"format"\s*:\s*"glci-shards-')


def refuse_foreign_index(folder: Path) -> None:
    """UserError if ``folder``/index.json exists and is not an index of shards."""
    path = folder / INDEX_NAME
    content = _content(path)
    if content is not None and not _OUR_INDEX.match(content) and not _is_index(content):
        raise UserError(
            f"{path} is of another program, or damaged, and would be overwritten: it is no index of shards; "
            "move it away, or use another folder (with links to the tars)"
        )


def refuse_foreign_rejects(path: Path) -> None:
    """UserError if ``path`` exists and is not a list of names and reasons."""
    content = _content(path)
    for line in (content or b"").splitlines()[:1]:
        try:
            ours = set(json.loads(line)) == {"name", "reason"}
        except (ValueError, TypeError):
            ours = False
        if not ours:
            raise _foreign(path)


def refuse_foreign_table(path: Path) -> None:
    """UserError if ``path`` exists and is not a sample table."""
    if path.exists() and not is_table(path):
        raise _foreign(path)


def is_table(path: Path) -> bool:
    """Whether the file at ``path`` has the header of a sample table, which no other program writes."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            dtype = read(file)[2]
    except (ValueError, IsADirectoryError, FileNotFoundError):
        return False
    key = dtype.fields.get("key") if dtype.fields else None
    return key is not None and bool(dtype == table_dtype(key[0].itemsize))


def refuse_foreign_report(what: str, mark: bytes, first: Path, *others: Path) -> None:
    """UserError if one of a report's files exists and is not of an earlier report; for commands with --out.

    Our reports have ``mark`` in the first 1024 bytes of ``first``, which is written before the ``others``.
    """
    there = next((path for path in (first, *others) if os.path.lexists(path)), None)
    try:
        ours = mark in read_file(first, 1024)
    except OSError:
        ours = False
    if there is not None and not ours:
        raise UserError(f"{there} is there and is no {what} of glci; give another --out, or move it away")


def _foreign(path: Path) -> UserError:
    return UserError(f"{path} is of another program and would be overwritten; move it away, or use another folder")


def _content(path: Path) -> bytes | None:
    """The content of a file; None if it does not exist. UserError if it is not a regular file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is in the way, as it is no file; move it away, or use another folder")
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _is_index(content: bytes) -> bool:
    try:
        document = json.loads(content)
    except ValueError:
        return False
    return isinstance(document, dict) and str(document.get("format", "")).startswith("glci-shards-")
