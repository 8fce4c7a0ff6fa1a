"""Splits of one source (``train``, ``val``): which photos are in none of them, and which are in several."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from glci_dist.data.names import counted, shown
from glci_dist.data.plan import has_plan, read_plan
from glci_dist.data.sources import Source
from glci_dist.errors import UserError


def other_splits(folder: Path, source: str) -> dict[str, str]:
    """Other builds of ``source`` in folders beside ``folder``: their --include, by folder name."""
    parts: dict[str, str] = {}
    try:
        beside = sorted(folder.resolve().parent.iterdir())
    except OSError:  # other folders must not make this build fail
        return parts
    for other in beside:
        if other == folder.resolve():
            continue
        try:
            plan = read_plan(other) if has_plan(other) else None
        except (UserError, OSError):
            continue
        if plan and plan.source == source:
            parts[other.name] = plan.options.include
    return parts


def split_messages(photos: Source, folder: Path, include: str, others: dict[str, str]) -> list[str]:
    """Messages on the photos that are in no part, and on those that are in two; none if there is one part."""
    if not others:
        return []
    in_none = [name for name in photos.left_out.not_included if not _matches(name, others)]
    messages: list[str] = []
    if in_none:
        every = {folder.name: include, **others}
        patterns = ", ".join(f"{name} (--include {pattern!r})" for name, pattern in every.items())
        total = len(photos.photos) + len(photos.left_out.not_included)
        messages.append(f"{len(in_none):,} of {total:,} photos are in no part: not in {patterns}: {shown(in_none)}")
    for name, pattern in others.items():
        in_both = [photo.name for photo in photos.photos if _matches(photo.name, {name: pattern})]
        if in_both:
            messages.append(
                f"in {name} (--include {pattern!r}), too: {counted(len(in_both), 'photo')}: {shown(in_both)}"
            )
    return messages


def _matches(name: str, parts: dict[str, str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in parts.values())
