"""WebDataset samples of a tar: which image of each sample is its photo, and which images are rejected."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from glci_dist.data.members import Member, SkippedEntry, follow_links
from glci_dist.data.names import PHOTO_EXTENSIONS, UNREAD_EXTENSIONS, is_hidden, is_photo, shown
from glci_dist.data.pixels import too_many_bytes, unread_format
from glci_dist.data.tars import tar_entries

# WebDataset's rule: the key ends at the first dot of the file's own name.
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
_RANKS = {extension[1:]: rank for rank, extension in enumerate(PHOTO_EXTENSIONS)}


@dataclass(frozen=True)
class RejectedImage:
    """An image of a tar that is not a sample's photo."""

    name: str
    kind: str
    """The kind of reason, equal for all such images."""
    reason: str
    by_choice: bool = False
    """Whether another value of ``image`` may make it a sample's photo."""


@dataclass(frozen=True)
class Samples:
    """The samples of one tar."""

    rows: list[tuple[int, int, str]] = field(default_factory=list)
    """(offset, length, key) of each sample's photo."""
    rejects: list[RejectedImage] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    """Keys of samples without an image."""
    hidden: list[str] = field(default_factory=list)
    """Images that are hidden, or in hidden or machine-made folders."""
    extensions: Counter[str] = field(default_factory=Counter)
    """Number of images by full extension (``jpg``, ``face.jpg``)."""

    @property
    def images(self) -> int:
        """Number of images that are not hidden."""
        return len(self.rows) + len(self.rejects)


def tar_samples(path: Path, *, image: str | None = None) -> Samples:
    """The samples of a plain tar. UserError as ``tar_entries``.

    A sample is a run of members with one key. Its photo is the member with the extension ``image`` (without its first
    dot); with None the member with a photo's extension, the first in the order of ``PHOTO_EXTENSIONS``. Of two members
    with one name the later is used.
    """
    samples = Samples()

    def keyed() -> Iterator[tuple[str, str, Member]]:
        for member in follow_links(tar_entries(path)):
            if isinstance(member, SkippedEntry):
                continue
            if is_hidden(member.name):
                if is_photo(member.name):
                    samples.hidden.append(member.name)
            elif match := _KEY.match(member.name):  # like WebDataset, ignore files without a dot
                yield match[1], match[2].lower(), member

    for key, run in itertools.groupby(keyed(), key=lambda found: found[0]):
        _finish(samples, path, key, [(extension, member) for _, extension, member in run], image)
    return samples


def _finish(samples: Samples, path: Path, key: str, run: list[tuple[str, Member]], image: str | None) -> None:
    """Add the sample of ``key``: a run of (extension, member) in the tar at ``path``."""
    images = [(extension, member) for extension, member in run if is_photo(member.name) or extension == image]
    samples.extensions.update(extension for extension, _ in images)
    if not images:
        samples.without.append(key)
        return
    last = {member.name: member for _, member in images}
    later = "a later file of its sample has the same name and replaces it"
    samples.rejects.extend(
        RejectedImage(member.name, "a later file has their name", later)
        for _, member in images
        if last[member.name] is not member
    )
    images = [(extension, member) for extension, member in images if last[member.name] is member]
    photo = _choose(images, image)
    if photo is None:
        names = [member.name for _, member in images]
        samples.rejects.extend(RejectedImage(name, *_no_choice(key, names, image), by_choice=True) for name in names)
        return
    other = ("another image is their sample's photo", f"its sample's photo is {photo.name!r}")
    samples.rejects.extend(
        RejectedImage(member.name, *other, by_choice=True) for _, member in images if member is not photo
    )
    fault = photo.fault or ("a sparse file, which cannot be read in one piece" if photo.pieces is not None else "")
    fault = fault or too_many_bytes(photo.bytes) or _unread(path, photo)
    if fault:
        samples.rejects.append(RejectedImage(photo.name, "cannot be read", fault))
        return
    samples.rows.append((photo.offset, photo.bytes, key.encode(errors="replace").decode()))


def _unread(path: Path, photo: Member) -> str:
    """Why a photo with the extension and content of an unsupported format cannot be read; else empty."""
    if not photo.name.lower().endswith(UNREAD_EXTENSIONS):
        return ""
    with open(path, "rb") as tar:
        tar.seek(photo.offset)
        return unread_format(tar.read(min(photo.bytes, 16)))


def _choose(images: Iterable[tuple[str, Member]], image: str | None) -> Member | None:
    if image is not None:
        return next((member for extension, member in images if extension == image), None)
    plain = [(extension, member) for extension, member in images if extension in _RANKS]
    return min(plain, key=lambda found: _RANKS[found[0]])[1] if plain else None


def _no_choice(key: str, names: list[str], image: str | None) -> tuple[str, str]:
    wanted = f"image {key}.{image}" if image else f"photo named {key}.jpg or the like"
    kind = f"their sample has no image of the extension {image}" if image else "their name has more than one dot"
    many = f"{len(names)} images share" if len(names) > 1 else "1 image has"
    return kind, (f"the key ends at the first dot: {many} the key {key!r} ({shown(names)}), and there is no {wanted}")
