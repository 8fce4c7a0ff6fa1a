"""Count in = count out + rejects by name, over folders, zips and tars drawn at random with every oddity in them.

Each photo has pixels of its own, so that what came out is told by its content and not by names and keys.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import stat
import tarfile
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from glci_dist.data.index import load_index
from tests.data.shards_help import glci, jpeg, write_zip
from tests.data.test_shards_index import all_samples

BASES = ["a", "b c", "é", "x.face", "John.Smith_001", "new\nline", "UPPER", "semi;colon", "n" * 120, "9"]
ENDS = [".jpg", ".JPG", ".jpeg", ".png", ".tif", ".bmp", ".jfif", ".gif", ".avif", ".JP2", ".pgm"]
UNREAD = [".heic", ".HEIF", ".jxl"]
FOLDERS = ["", "train/", "train/v1.2/", "val/", "deep/er/est/"]
HIDDEN = ["@eaDir/", ".thumbnails/", ".ipynb_checkpoints/", ".Trash-1000/files/", "__MACOSX/", "val/$RECYCLE.BIN/"]
OTHERS = ["labels.json", "README", "Thumbs.db", ".DS_Store", "part.zip", "train/list.txt", "film.mov"]


@dataclass
class Drawn:
    """What was put into a source."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Photos and other files by name."""
    good: dict[str, bytes] = field(default_factory=dict)
    """Photos that must come out, links among them, and their content."""
    bad: set[str] = field(default_factory=set)
    """Photos that must be named."""
    unread: set[str] = field(default_factory=set)
    """Those of them whose format is read nowhere here."""
    hidden: int = 0
    links: dict[str, str] = field(default_factory=dict)
    """Links by name, with their targets, seen from the link."""
    again: list[tuple[str, bytes]] = field(default_factory=list)
    """Files of names that are there already, which replace those in an archive."""


def draw(seed: int) -> Drawn:
    """A source of 10 to 40 entries."""
    chance = random.Random(seed)
    drawn = Drawn()
    for number in range(chance.randint(10, 40)):
        name = chance.choice(FOLDERS) + chance.choice(BASES) + chance.choice(ENDS)
        kind = chance.choices(["photo", "bad", "link", "hidden", "other", "unread"], [12, 2, 3, 3, 2, 2])[0]
        content = jpeg(seed * 40 + number, width=16, height=16)
        if name in drawn.files or name in drawn.links:
            continue
        if kind == "photo":
            drawn.files[name] = drawn.good[name] = content
        elif kind == "bad":
            drawn.files[name] = chance.choice([b"", b"no photo", content[:-40]])
            drawn.bad.add(name)
        elif kind == "unread":
            name = name.rpartition(".")[0] + chance.choice(UNREAD)
            start = b"\0\0\0\x0cJXL \r\n\x87\n" if name.endswith(".jxl") else b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
            if name not in drawn.files:
                drawn.files[name] = start + b"%d" % (seed * 40 + number)
                drawn.bad.add(name)
                drawn.unread.add(name)
        elif kind == "link":
            whole = [good for good in drawn.good if good in drawn.files]
            target = chance.choice([*whole, "gone.jpg", name])
            drawn.links[name] = os.path.relpath(target, os.path.dirname(name) or ".")
            if target in drawn.files:
                drawn.good[name] = drawn.files[target]
            else:
                drawn.bad.add(name)
        elif kind == "hidden":
            drawn.files[chance.choice(HIDDEN) + f"{number}.jpg"] = content
            drawn.hidden += 1
        else:
            drawn.files[chance.choice(OTHERS)] = b"no photo"
    if not drawn.good:
        drawn.files["one.jpg"] = drawn.good["one.jpg"] = jpeg(seed, width=16, height=16)
    return drawn


def write(path: Path, kind: str, drawn: Drawn) -> None:
    """The drawn source as a folder, zip or tar."""
    if kind == "folder":
        for name, content in drawn.files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        for name, target in drawn.links.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).symlink_to(target)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are there already
            for name, content in [*drawn.files.items(), *drawn.again]:
                archive.writestr(name, content)
            for name, target in drawn.links.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, target)
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name, target in drawn.links.items():
                header = tarfile.TarInfo(name)
                header.type, header.linkname = tarfile.SYMTYPE, target
                archive.addfile(header)
            for name, content in [*drawn.files.items(), *drawn.again]:
                header = tarfile.TarInfo(name)
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))


def names(path: Path) -> list[str]:
    """The names in a list of rejects."""
    return [json.loads(line)["name"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_every_photo_of_a_source_is_built_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for seed in range(25):
        drawn = draw(seed)
        again: Counter[str] = Counter()
        if kind != "folder" and seed % 2:
            name = next(iter(drawn.good))
            if name in drawn.files and name not in drawn.links:
                # The earlier one is named; links then lead to the later one.
                old, new = drawn.files[name], jpeg(9000 + seed, width=16, height=16)
                drawn.again.append((name, new))
                drawn.good = {key: new if content == old else content for key, content in drawn.good.items()}
                again[name] += 1
        source, folder = tmp_path / f"{seed}.{kind}", tmp_path / f"s{seed}"
        if kind == "tar" and seed % 3 == 0:
            drawn.files["zz.zip"] = write_zip(tmp_path / "masks", {"m.jpg": jpeg(1)}).read_bytes()
        write(source, kind, drawn)
        assert glci("shards", "build", source, folder, "--samples", 7, "--processes", 1) == 0, seed
        told = capsys.readouterr().out
        built = [photo for _, photo in all_samples(load_index(str(folder)))]
        assert sorted(built) == sorted(drawn.good.values()), seed
        assert Counter(names(folder / "rejects.jsonl")) == Counter(drawn.bad) + again, seed
        rejected = len(drawn.bad) + again.total()
        found = re.search(r"found ([\d,]+) photos?: ([\d,]+) built, ([\d,]+) rejected", told)
        assert found, told
        assert [int(count) for count in found.groups()] == [len(built) + rejected, len(built), rejected]
        hidden = re.search(r"(\d+) photos? hidden", told)
        assert int(hidden[1] if hidden else 0) == drawn.hidden, seed


def test_every_image_of_others_tars_is_a_sample_or_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        images: dict[bytes, str] = {}
        for shard in range(1 + seed % 3):
            drawn = draw(1000 + 3 * seed + shard)
            drawn.files = {
                name: content for name, content in drawn.files.items() if name not in drawn.bad - drawn.unread
            }
            drawn.files[f"plain{seed}-{shard}.jpg"] = jpeg(5000 + 3 * seed + shard, width=16, height=16)
            drawn.links = {}
            write(folder / f"{shard}.tar", "tar", drawn)
            hidden = tuple(HIDDEN)
            for name, content in drawn.files.items():
                if name.lower().endswith(tuple(end.lower() for end in ENDS + UNREAD)) and not name.startswith(hidden):
                    images[content] = f"{shard}.tar/{name}"
        options = [(), ("--image", "jpg"), ("--image", "face.jpg")][seed % 3]
        code = glci("shards", "index", folder, "--processes", 1, *options)
        captured = capsys.readouterr()
        if code == 2:
            assert "has a photo" in captured.err, seed
            assert "--image" in options
            continue
        assert code == 0, captured.err
        kept = [photo for _, photo in all_samples(load_index(str(folder)))]
        left_out = names(folder / "index-rejects.jsonl")
        assert sorted(images.values()) == sorted([*(images[photo] for photo in kept), *left_out]), seed
        found = re.search(r"found ([\d,]+) images?: ([\d,]+) indexed, ([\d,]+) left out", captured.out)
        assert found, captured.out
        assert [int(count) for count in found.groups()] == [len(images), len(kept), len(left_out)]
