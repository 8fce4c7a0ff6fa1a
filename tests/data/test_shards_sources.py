"""What photo folders and archives really hold: it becomes a sample, is named, or is told; never lost in silence."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from tests.data.shards_help import contents, glci, jpeg, some_photos, write_folder, write_tar, write_zip
from tests.data.test_shards_build import read_samples

PHOTOS = {f"p{number}.jpg": jpeg(number) for number in range(10)}


def build(source: Path, folder: Path, *options: object) -> int:
    """`glci shards build` in one process."""
    return glci("shards", "build", source, folder, "--processes", 1, *options)


def rejects(folder: Path, name: str = "rejects.jsonl") -> dict[str, str]:
    """Name and reason of each photo left out."""
    path = folder / name
    return {r["name"]: r["reason"] for r in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def add(
    archive: tarfile.TarFile, name: str, content: bytes = b"", *, kind: bytes = tarfile.REGTYPE, to: str = ""
) -> None:
    """One member of any kind."""
    header = tarfile.TarInfo(name)
    header.size, header.type, header.linkname = len(content), kind, to
    archive.addfile(header, io.BytesIO(content))


@pytest.mark.parametrize("last", ["masks.zip", "landmarks.npz"])
@pytest.mark.parametrize("end", [".tar", ".tar.gz", ".zip"])
def test_a_tar_is_a_tar_whatever_lies_at_its_end_and_whatever_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], last: str, end: str
) -> None:
    masks = write_zip(tmp_path / "masks", {f"m{n}.jpg": jpeg(90 + n) for n in range(3)}).read_bytes()
    source = write_tar(tmp_path / f"photos{end}", {**PHOTOS, last: masks})
    assert build(source, tmp_path / "s") == 0
    assert sorted(read_samples(tmp_path / "s").values()) == sorted(PHOTOS.values())
    assert repr(last) in capsys.readouterr().out


def test_a_zip_is_a_zip_by_any_name_and_with_a_program_before_it(tmp_path: Path) -> None:
    zipped = write_zip(tmp_path / "photos.tar", PHOTOS)
    (tmp_path / "setup.exe").write_bytes(b"MZ" + b"program" * 99 + zipped.read_bytes())
    for number, source in enumerate((zipped, tmp_path / "setup.exe")):
        assert build(source, tmp_path / str(number)) == 0
        assert len(read_samples(tmp_path / str(number))) == 10


def test_what_is_no_archive_of_photos_is_told_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = bytearray(write_zip(tmp_path / "split.zip", PHOTOS).read_bytes())
    split[split.rindex(b"PK\5\6") + 4] = 2
    damaged = bytearray(write_tar(tmp_path / "a.tar.gz", some_photos(40)).read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 2] = b"\0\0"
    files = {
        "split.zip": (bytes(split), "one part of a zip in several"),
        "a.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), "a 7z archive"),
        "a.tar.zst": (b"\x28\xb5\x2f\xfd" + bytes(99), "compressed with zstd"),
        "damaged.tar.gz": (bytes(damaged), "damaged"),
        "empty.tar": (b"", "it is empty"),
        "photo.jpg": (jpeg(1), "a photo itself"),
        "nothing.tar": (bytes(10240), "has no photo"),
        "nested.tar": (write_tar(tmp_path / "n", {"part1.zip": b"PK\3\4"}).read_bytes(), "'part1.zip'"),
    }
    os.mkfifo(tmp_path / "pipe")
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    for name, told in [("pipe", "pipe or a device"), *((name, told) for name, (_, told) in files.items())]:
        assert build(tmp_path / name, tmp_path / "s") == 2, name
        error = capsys.readouterr().err
        assert told in error, name
        assert name in error
        assert error.count("\n") == 1
        assert not (tmp_path / "s").exists(), name


def test_links_in_a_tar_are_followed_within_it_and_others_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        add(archive, "early.jpg", kind=tarfile.SYMTYPE, to="folder/b.jpg")
        add(archive, "a.jpg", jpeg(1))
        add(archive, "hard.jpg", kind=tarfile.LNKTYPE, to="a.jpg")
        add(archive, "folder/b.jpg", jpeg(2))
        add(archive, "folder/up.jpg", kind=tarfile.SYMTYPE, to="../a.jpg")
        add(archive, "shelf", kind=tarfile.SYMTYPE, to="folder")
        add(archive, "through.jpg", kind=tarfile.SYMTYPE, to="shelf/b.jpg")
        add(archive, "loop.jpg", kind=tarfile.SYMTYPE, to="loop.jpg")
        add(archive, "outside.jpg", kind=tarfile.SYMTYPE, to="/etc/hostname.jpg")
        add(archive, "nowhere.jpg", kind=tarfile.LNKTYPE, to="gone.jpg")
        add(archive, "device.jpg", kind=tarfile.CHRTYPE)
    assert build(tmp_path / "links.tar", tmp_path / "s") == 0
    assert read_samples(tmp_path / "s") == {
        **dict.fromkeys(("a", "hard", "folder_up"), jpeg(1)),
        **dict.fromkeys(("folder_b", "early", "through"), jpeg(2)),
    }
    assert set(rejects(tmp_path / "s")) == {"loop.jpg", "outside.jpg", "nowhere.jpg", "device.jpg"}


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_members_of_a_tar_are_read_whole_by_build_and_named_by_index(tmp_path: Path, form: str) -> None:
    source = write_folder(tmp_path / "photos", {"a.jpg": jpeg(1), "sparse.jpg": jpeg(2)})
    with open(source / "sparse.jpg", "r+b") as file:
        file.truncate(1 << 20)
    (tmp_path / "t").mkdir()
    options = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    tar = tmp_path / "t" / "a.tar"
    subprocess.run(["tar", "-cSf", tar, *options, "-C", source, "a.jpg", "sparse.jpg"], check=True)
    assert tar.stat().st_size < 1 << 19, "tar kept the holes out"
    assert build(tar, tmp_path / "s") == 0
    assert read_samples(tmp_path / "s")["sparse"] == (source / "sparse.jpg").read_bytes()
    assert glci("shards", "index", tmp_path / "t", "--processes", 1) == 0
    assert set(rejects(tmp_path / "t", "index-rejects.jsonl")) == {"a.tar/sparse.jpg"}


def test_odd_entries_of_a_zip_become_samples_or_are_named(tmp_path: Path) -> None:
    def entry(name: str, *, mode: int = 0, system: int = 3) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = system, mode << 16
        return info

    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, name in enumerate(["x/a.jpg", "twice.jpg", "twice.jpg", "/abs.jpg", "../up.jpg", "é.jpg"]):
            archive.writestr(name, jpeg(number))
        archive.writestr(entry("windows\\b.jpg", system=0), jpeg(7))
        archive.writestr(entry("link.jpg", mode=stat.S_IFLNK | 0o777), "x/a.jpg")
        archive.writestr(entry("away.jpg", mode=stat.S_IFLNK | 0o777), "/etc/passwd")
    assert build(tmp_path / "odd.zip", tmp_path / "s") == 0
    samples = read_samples(tmp_path / "s")
    assert samples["twice"] == jpeg(2)
    assert samples["link"] == samples["x_a"] == jpeg(0)
    assert samples["windows_b"] == jpeg(7)
    assert len(samples) == 7
    assert set(rejects(tmp_path / "s")) == {"twice.jpg", "away.jpg"}


def test_hidden_and_machine_made_folders_are_left_out_and_told_but_only_below_the_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junk = ["@eaDir/a.jpg/SYNO_THUMB.jpg", "x/.thumbnails/t.png", ".ipynb_checkpoints/a-checkpoint.jpg", "x/._b.jpg"]
    junk += [
        ".Trash-1000/files/d.jpg",
        "$RECYCLE.BIN/$R1.jpg",
        "__MACOSX/x/._a.jpg",
        "#recycle/e.jpg",
        "lost+found/f.jpg",
    ]
    files = {**dict.fromkeys(junk, jpeg(1)), "a.jpg": jpeg(2), "x/b.jpg": jpeg(3)}
    folder = write_folder(tmp_path / ".cache" / "photos", files)
    archives = [write_zip(tmp_path / "p.zip", files), write_tar(tmp_path / "p.tar", files)]
    for number, source in enumerate([folder, *archives]):
        assert build(source, tmp_path / str(number)) == 0
        assert set(read_samples(tmp_path / str(number))) == {"a", "x_b"}
        assert "9 photos hidden, or in hidden or machine-made folders, left out: " in capsys.readouterr().out


def test_linked_folders_are_followed_once_and_a_bad_entry_never_ends_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_folder(tmp_path / "photos", {"z/a.jpg": jpeg(1), ".store/d.jpg": jpeg(4)})
    write_folder(tmp_path / "elsewhere", {"b.jpg": jpeg(2), "deep/c.jpg": jpeg(3)})
    for name, target in {
        "more": "../elsewhere",
        "again": "../elsewhere/deep",
        "itself": ".",
        "up": "..",
        "shown": ".store",
        "unmounted": "/nowhere/photos",
        "loop.jpg": "loop.jpg",
        "gone.jpg": "none.jpg",
        "a-linked.jpg": "z/a.jpg",
    }.items():
        (source / name).symlink_to(target)
    os.mkfifo(source / "pipe.jpg")
    (source / "new\nline.jpg").write_bytes(jpeg(5))
    (source / "bytes\udcff.jpg").write_bytes(jpeg(6))
    assert build(source, tmp_path / "s") == 0
    samples = read_samples(tmp_path / "s")
    assert sorted(samples.values()) == sorted([jpeg(1), *(jpeg(number) for number in range(1, 7))])
    assert {"more_b", "shown_d", "z_a", "a-linked"} < set(samples)
    assert set(rejects(tmp_path / "s")) == {"loop.jpg", "gone.jpg", "pipe.jpg"}
    told = capsys.readouterr().out
    for part in ("a linked folder, followed: 'again', 'more', 'shown'", "'itself'", "'up'", "'unmounted'"):
        assert part in told
    assert "found 10 photos: 7 built, 3 rejected" in told


def test_an_unlistable_folder_and_other_formats_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "photos", {"a.jpg": jpeg(1), "b.mov": b"", "part1.zip": b"PK", "raw": b""})
    deep, descriptor = "d" * 200, os.open(source, os.O_RDONLY)
    for _ in range(22):  # until its path is longer than the system takes
        os.mkdir(deep, dir_fd=descriptor)
        inner = os.open(deep, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    assert build(source, tmp_path / "s") == 0
    told = capsys.readouterr().out
    assert "2 files that are no photos by extension left out (1 .mov, 1 none)" in told
    assert "'part1.zip'" in told
    ((name, reason),) = rejects(tmp_path / "s").items()
    assert name.endswith("d/")
    assert "too long" in reason


def test_photos_that_no_part_took_and_those_in_two_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["1.jpg", "9.jpg", "2.jpeg", "19.jpeg", "3.JPG", "29.JPG"]
    source = write_folder(tmp_path / "photos", {name: jpeg(n) for n, name in enumerate(names)})
    assert build(source, tmp_path / "train", "--include", "*[0-8].jpg") == 0
    assert "5 of 6 photos match no --include '*[0-8].jpg' (2 .JPG, 2 .jpeg, 1 .jpg)" in capsys.readouterr().out
    assert build(source, tmp_path / "val", "--include", "*9.jpg") == 0
    told = capsys.readouterr().out
    assert "4 of 6 photos are in no part: not in val (--include '*9.jpg'), train (--include '*[0-8].jpg')" in told
    assert build(source, tmp_path / "all") == 0
    assert "in val (--include '*9.jpg'), too: 1 photo: '9.jpg'" in capsys.readouterr().out
    for folder, pattern in (("t2", "*[0-8].*"), ("v2", "*9.*")):  # the README's
        assert build(source, tmp_path / "parts" / folder, "--include", pattern) == 0
    assert "in no part" not in capsys.readouterr().out


SLOW_BUILD = """
import sys, time
from glci_dist.cli import main
from glci_dist.data import build

make = build._make_shard

def wait_and_make(task):
    # Until the test has tried the second build: then this one's source is read.
    print("building", flush=True)
    sys.stdin.readline()
    return make(task)

build._make_shard = wait_and_make
sys.exit(main(["shards", "build", *sys.argv[1:], "--processes", "1"]))
"""


@pytest.mark.parametrize("end", [".tgz", ".tar"])
def test_a_second_build_in_a_folder_is_refused_and_touches_nothing_of_the_first(tmp_path: Path, end: str) -> None:
    photos = some_photos(12)
    source = write_tar(tmp_path / "photos.tar.gz", photos) if end == ".tgz" else write_tar(tmp_path / "p.tar", photos)
    folder = tmp_path / "s"
    (tmp_path / "slow.py").write_text(SLOW_BUILD)
    command = [sys.executable, *map(str, (tmp_path / "slow.py", source, folder))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "building\n"
        before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
        assert build(source, folder) == 2
        assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()} == before
        first.stdin.write("\n" * 3)
        first.stdin.flush()
        assert first.wait(60) == 0
    assert sorted(read_samples(folder).values()) == sorted(photos.values())
    assert not list(folder.glob("*.tmp"))


def test_what_a_killed_build_left_is_unpacked_anew(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "photos.tar.gz", PHOTOS)
    left = write_folder(tmp_path / "s", {"source.tar.tmp": b"half", "build.jsonl": b""})
    assert build(source, left) == 0
    assert len(read_samples(left)) == 10
    assert sorted(path.name for path in left.iterdir()) == [
        "build.json",
        "index.json",
        "shard-000000.tar",
        "shard-000000.tar.samples.npy",
    ]


@pytest.mark.parametrize(
    "name", ["index.json", "rejects.jsonl", "build.json", "build.jsonl", "x.tar.samples.npy", "x.tar"]
)
def test_no_build_overwrites_a_file_of_another_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    source = write_folder(tmp_path / "photos", PHOTOS)
    for content in (b'{"theirs": 1}\n', b"no JSON, and no newline"):
        folder = write_folder(tmp_path / "s", {name: content})
        assert build(source, folder) == 2
        assert name in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: content}


def test_demo_corpus_and_show_leave_alone_what_others_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = ("demo-corpus", tmp_path / "d", "--train", 3, "--val", 2, "--size", 32, "--processes", 1)
    theirs = {"train-photos/mine.jpg": jpeg(1), "train/notes.txt": b"mine", "val/index.json": b"{}"}
    for name, content in theirs.items():
        write_folder(tmp_path / "d", {name: content})
        for _ in range(2):
            assert glci(*demo) == 2
            assert "another" in capsys.readouterr().err
        assert (tmp_path / "d" / name).read_bytes() == content
        (tmp_path / "d" / name).unlink()
        (tmp_path / "d" / name).parent.rmdir()
    assert build(write_folder(tmp_path / "p", PHOTOS), tmp_path / "d" / "train") == 0
    before = contents(tmp_path / "d" / "train")
    for _ in range(2):
        assert glci(*demo) == 2
    assert contents(tmp_path / "d" / "train") == before

    (tmp_path / "face.png").write_bytes(b"a photo of mine")
    assert glci("shards", "show", tmp_path / "d" / "train", "--out", tmp_path / "face.png") == 2
    assert (tmp_path / "face.png").read_bytes() == b"a photo of mine"


def test_thumbnails_and_previews_that_programs_keep_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junk = ["_thumbs/a.jpg", "FOUND.000/FILE0000.jpg", "x/found.012/b.jpg", "Trip Previews.lrdata/0/c.jpg"]
    junk += ["My.photoslibrary/resources/derivatives/1/d.jpg"]
    kept = ["My.photoslibrary/originals/1/d.jpg", "found.photos/e.jpg", "x/derivatives/f.jpg", "lrdata/g.jpg"]
    files = {name: jpeg(number) for number, name in enumerate(junk + kept)}
    folder = write_folder(tmp_path / "photos", files)
    archives = [write_zip(tmp_path / "p.zip", files), write_tar(tmp_path / "p.tar", files)]
    for number, source in enumerate([folder, *archives]):
        assert build(source, tmp_path / str(number)) == 0
        assert "found 4 photos: 4 built" in (told := capsys.readouterr().out)
        assert "5 photos hidden, or in hidden or machine-made folders, left out: " in told
