"""Entries of a source of photos: files, links in archives, and notes on other entries."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

# As many as Linux follows before it calls a link a loop.
_MOST_LINKS = 40


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a source."""

    name: str
    """Path below the source, with ``/``; ends in ``/`` for a folder that cannot be listed."""
    bytes: int
    """Uncompressed size."""
    stamp: int
    """Changes when the photo does: a zip's checksum, else the modification time."""
    offset: int = 0
    """First byte of the file's data in a tar, of its header in a zip; 0 in a folder."""
    pieces: tuple[tuple[int, int], ...] | None = None
    """Of a sparse file in a tar: (offset in the file, length) of each stored piece; they follow each other at
    ``offset``."""
    fault: str = ""
    """Why it cannot be read, if the listing already knows that."""


@dataclass(frozen=True, slots=True)
class Link:
    """A link in an archive."""

    name: str
    target: str
    """As stored: relative to the archive's root for a hard link, else to the link's folder."""
    hard: bool
    stamp: int


@dataclass(frozen=True, slots=True)
class SkippedEntry:
    """An entry of a source that is not a file, with a message for the user."""

    name: str
    what: str


def follow_links(entries: Iterable[Member | Link]) -> Iterator[Member | SkippedEntry]:
    """The entries of an archive in their order; each link becomes a file with its target's content.

    A link to a folder becomes a ``SkippedEntry``; a link to no file of the archive becomes a ``Member`` with a fault.
    """
    listed: list[Member | Link] = []
    files: dict[str, Member] = {}
    links: dict[str, Link] = {}
    for entry in entries:
        place = posixpath.normpath(entry.name)
        if isinstance(entry, Link) and entry.hard and (target := files.get(posixpath.normpath(entry.target))):
            # A hard link refers to the file before it, even if a later one of that name replaces it.
            entry = replace(target, name=entry.name)
        listed.append(entry)
        if isinstance(entry, Member):
            files[place] = entry
            links.pop(place, None)
        else:
            links[place] = entry
            files.pop(place, None)
    if not links:
        yield from (entry for entry in listed if isinstance(entry, Member))
        return
    folders = {folder for name in files for folder in _parents(name)}
    for entry in listed:
        yield entry if isinstance(entry, Member) else _follow(entry, files, links, folders)


def replaced_marked(members: Iterable[Member]) -> list[Member]:
    """The members of an archive; files that a later one of the same name replaces get a fault."""
    listed = list(members)
    last = {member.name: number for number, member in enumerate(listed)}
    fault = "a later file of the archive has the same name and replaces it"
    return [
        member if last[member.name] == number else replace(member, fault=fault) for number, member in enumerate(listed)
    ]


def _follow(link: Link, files: dict[str, Member], links: dict[str, Link], folders: set[str]) -> Member | SkippedEntry:
    place = _target(link)
    for _ in range(_MOST_LINKS):
        if place.startswith(("/", "../")) or place == "..":
            return _bad(link, f"a link to {link.target!r}, which is outside of the archive")
        if place in files:
            return replace(files[place], name=link.name)
        through = next((part for part in (place, *_parents(place)) if part in links), None)
        if through is None:
            break
        place = posixpath.normpath(_target(links[through]) + place[len(through) :])
    else:
        return _bad(link, f"a link to {link.target!r}, which leads back to itself")
    if place in folders or place == ".":
        return SkippedEntry(link.name, "a link to a folder, whose photos are listed by their own names")
    return _bad(link, f"a link to {link.target!r}, which is not in the archive")


def _target(link: Link) -> str:
    if link.hard:
        return posixpath.normpath(link.target)
    return posixpath.normpath(posixpath.join(posixpath.dirname(link.name), link.target))


def _bad(link: Link, fault: str) -> Member:
    return Member(link.name, 0, link.stamp, fault=fault)


def _parents(name: str) -> Iterator[str]:
    while (name := posixpath.dirname(name)) not in ("", "/"):
        yield name
