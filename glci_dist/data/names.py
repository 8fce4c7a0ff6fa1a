"""Classifies files by name: photos, archives, hidden and machine-made ones; and prints names safely."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence

_READ = (
    *(".jpg", ".jpeg", ".png", ".webp", ".jpe", ".jfif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pnm", ".apng", ".gif"),
)
UNREAD_EXTENSIONS = (".heic", ".heif", ".hif", ".jxl")
"""Photos that no decoder here reads: they count as photos, and are rejected with the reason."""

# A WebDataset sample's photo is the first of its images in this order.
PHOTO_EXTENSIONS = _READ + UNREAD_EXTENSIONS
READ_IN_WORDS = "jpg, png, webp, bmp, tiff, avif, jp2, ppm or gif"

COMPRESSED_TARS = (
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tlz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
    *(".tar.lzma", ".tar.lz", ".tar.lz4", ".tar.z"),
)
_ARCHIVE_EXTENSIONS = (".zip", ".tar", *COMPRESSED_TARS)
_ARCHIVES_NOT_READ = (".7z", ".rar", ".z01")
# Folders of network drives, desktops and recycle bins, apart from those that begin with a dot.
_MACHINE_MADE = {
    *("#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@tmp", "__macosx"),
    *("__pycache__", "_thumbs", "lost+found", "lost.dir", "network trash folder", "recycled", "recycler"),
    *("system volume information", "temporary items", "~snapshot"),
}
# A disk check's recovered files, Lightroom's previews.
_MACHINE_MADE_FORM = re.compile(r"found\.[0-9]{3}|.+\.lrdata")
# Smaller copies in a library of Apple's Photos; the originals are in other folders of it.
_COPIES = re.compile(r"\.photoslibrary/resources/derivatives/", re.IGNORECASE)


def is_photo(name: str) -> bool:
    """Whether the extension of ``name`` is a photo's."""
    return name.lower().endswith(PHOTO_EXTENSIONS)


def is_archive(name: str) -> bool:
    """Whether the extension of ``name`` is an archive's, which may hold photos."""
    return name.lower().endswith(_ARCHIVE_EXTENSIONS + _ARCHIVES_NOT_READ)


def is_hidden(name: str) -> bool:
    """Whether a path below a source (with ``/``) is hidden, or in a folder that is hidden or machine-made.

    Machine-made: thumbnails, recycle bins, version control.
    """
    *folders, base = name.split("/")
    if any(part.startswith(".") and part not in (".", "..") for part in (*folders, base)):
        return True
    lower = [folder.lower() for folder in folders]
    is_made = any(folder in _MACHINE_MADE or _MACHINE_MADE_FORM.fullmatch(folder) for folder in lower)
    return is_made or bool(_COPIES.search(name))


def extension(name: str) -> str:
    """The extension of ``name``, with its dot; "none" if it has none."""
    return posixpath.splitext(name)[1] or "none"


def shown(names: Sequence[str], *, most: int = 3) -> str:
    """Some of ``names`` in one line, escaped, and how many more there are."""
    some = ", ".join(repr(name) for name in names[:most])
    return some + (f" and {len(names) - most:,} more" if len(names) > most else "")


def most_frequent(counts: Mapping[str, int], form: str) -> str:
    """The five names with the highest counts, each by ``form`` of name and count."""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(form.format(*item) for item in most[:5]) + (", ..." if len(most) > 5 else "")


def printable(name: str) -> str:
    """``name``, or its repr if it has control characters."""
    return name if name.isprintable() else repr(name)


def in_one_line(text: str) -> str:
    """``text`` with control characters escaped, so that it stays on one line."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def counted(number: int, noun: str) -> str:
    """``number`` and ``noun``, in the plural if need be: "2 photos"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
