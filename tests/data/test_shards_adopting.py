"""`glci shards index` over what others wrote: every image is a sample's photo or named, and no file is overwritten."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from glci_dist.data.index import load_index
from tests.data.shards_help import glci, jpeg, write_folder, write_tar, write_zip
from tests.data.test_shards_index import all_samples


def index(folder: Path, *options: object) -> int:
    """`glci shards index` in one process."""
    return glci("shards", "index", folder, "--processes", 1, *options)


def samples(folder: Path) -> dict[str, bytes]:
    """Key and photo of each sample."""
    return dict(all_samples(load_index(str(folder))))


def rejects(folder: Path) -> dict[str, str]:
    """Name and reason of each image left out."""
    path = folder / "index-rejects.jsonl"
    return {r["name"]: r["reason"] for r in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def test_names_with_several_dots_are_named_with_the_key_that_they_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["John.Smith_001.jpg", "John.Smith_002.jpg", "John.Smith_003.jpg", "Ann.jpg", "Bob.face.jpg"]
    write_tar(tmp_path / "a.tar", {name: jpeg(number) for number, name in enumerate(names)})
    assert index(tmp_path) == 0
    assert samples(tmp_path) == {"Ann": jpeg(3)}
    assert set(rejects(tmp_path)) == {f"a.tar/{name}" for name in names if name != "Ann.jpg"}
    told = capsys.readouterr().out
    assert "found 5 images: 1 indexed, 4 left out" in told
    assert "3 images share the key 'John'" in told
    assert "--image" in told
    assert str(tmp_path / "index-rejects.jsonl") in told
    assert glci("shards", "build", tmp_path / "a.tar", tmp_path / "s", "--processes", 1) == 0
    assert load_index(str(tmp_path / "s")).total == 5


def test_of_two_images_in_a_sample_the_choice_is_told_and_can_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files: dict[str, bytes] = {}
    for number in range(4):
        files |= {f"{number}.face.jpg": jpeg(number), f"{number}.jpg": jpeg(10 + number), f"{number}.json": b"{}"}
    write_tar(tmp_path / "a.tar", files)
    assert index(tmp_path) == 0
    assert samples(tmp_path) == {str(number): jpeg(10 + number) for number in range(4)}
    assert set(rejects(tmp_path)) == {f"a.tar/{number}.face.jpg" for number in range(4)}
    assert "face.jpg (4), jpg (4): --image EXT chooses" in capsys.readouterr().out
    for image in ("face.jpg", ".face.JPG"):
        assert index(tmp_path, "--image", image) == 0
        assert samples(tmp_path) == {str(number): jpeg(number) for number in range(4)}
    assert set(rejects(tmp_path)) == {f"a.tar/{number}.jpg" for number in range(4)}
    capsys.readouterr()
    assert index(tmp_path, "--image", "png") == 2
    error = capsys.readouterr().err
    assert "face.jpg (4), jpg (4)" in error
    assert error.count("\n") == 1
    assert index(tmp_path, "--image", "") == 2
    assert "--image" in capsys.readouterr().err


def test_every_format_that_build_takes_is_indexed(tmp_path: Path) -> None:
    extensions = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "TIFF", "avif", "GIF", "jp2", "j2k", "ppm"]
    write_tar(tmp_path / "a.tar", {f"{number}.{end}": jpeg(number) for number, end in enumerate(extensions)})
    assert index(tmp_path) == 0
    assert len(samples(tmp_path)) == len(extensions)


def test_links_in_others_tars_are_followed_and_hidden_images_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in [
            ("0.jpg", b"2", "1.jpg"),
            ("1.jpg", b"0", ""),
            ("2.jpg", b"1", "1.jpg"),
            ("3.jpg", b"2", "/away.jpg"),
            ("._1.jpg", b"0", ""),
            ("@eaDir/1.jpg", b"0", ""),
        ]:
            header = tarfile.TarInfo(name)
            content = jpeg(1) if kind == b"0" else b""
            header.type, header.linkname, header.size = kind, target, len(content)
            archive.addfile(header, io.BytesIO(content))
    assert index(tmp_path) == 0
    assert samples(tmp_path) == dict.fromkeys("012", jpeg(1))
    assert set(rejects(tmp_path)) == {"a.tar/3.jpg"}
    assert "2 images hidden" in capsys.readouterr().out


def test_tars_without_a_photo_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        write_tar(tmp_path / f"{number}.tar", {f"{number}.jpg": jpeg(number)})
    write_tar(tmp_path / "empty.tar", {})
    write_tar(tmp_path / "labels.tar", {"0.json": b"{}"})
    write_folder(tmp_path, {"nothing.tar": b"", "._0.tar": b"of macOS", "more.tar.gz": b"", "folder.tar/x": b""})
    assert glci("shards", "index", tmp_path, "--processes", 2) == 0
    assert [shard.name for shard in load_index(str(tmp_path)).shards] == [f"{number}.tar" for number in range(4)]
    told = capsys.readouterr().out
    assert "3 of 7 tars without a photo left out: 'empty.tar', 'labels.tar', 'nothing.tar'" in told
    for name in ("'._0.tar'", "'more.tar.gz'", "'folder.tar'"):
        assert name in told


def test_every_damaged_tar_is_named_at_once_and_nothing_is_indexed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_tar(tmp_path / "a.tar", {f"{number}.jpg": jpeg(number) for number in range(9)}).read_bytes()
    zipped = write_zip(tmp_path / "zip", {"0.jpg": jpeg(0)}).read_bytes()
    write_folder(tmp_path, {"cut.tar": whole[:3000], "text.tar": b"text" * 999, "zip.tar": zipped})
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nowhere.tar")
    assert index(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for name in (
        "cut.tar is cut",
        "text.tar is cut",
        "zip.tar is no plain tar but a zip",
        "gone.tar is a link to nowhere",
    ):
        assert name in error
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("name", ["index.json", "index-rejects.jsonl", "a.tar.samples.npy"])
def test_no_file_of_another_program_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": jpeg(0), "0.png": jpeg(1)})
    for content in (b'{"shards": ["a.tar"]}', b"[1, 2]", b"no JSON", b'{"format": "other-1"}'):
        (tmp_path / name).write_bytes(content)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert index(tmp_path) == 2
        error = capsys.readouterr().err
        assert str(tmp_path / name) in error
        assert error.count("\n") == 1
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / name).unlink()
    for _ in range(2):  # ours is made anew
        assert index(tmp_path) == 0
    (tmp_path / "index.json").write_bytes((tmp_path / "index.json").read_bytes()[:60])
    assert index(tmp_path) == 0
    assert load_index(str(tmp_path)).total == 1


def test_an_index_anew_removes_the_tables_of_tars_that_it_leaves_out_and_no_other_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.tar", "gone.tar"):
        write_tar(tmp_path / name, {"0.jpg": jpeg(0)})
    write_tar(tmp_path / "b.tar", {"0.jpg": jpeg(0), "0.face.jpg": jpeg(1)})
    assert index(tmp_path) == 0
    (tmp_path / "gone.tar").unlink()
    np.save(tmp_path / "theirs.tar.samples.npy", np.arange(3))
    (tmp_path / "empty.tar.samples.npy").touch()
    (tmp_path / "folder.tar.samples.npy").mkdir()
    assert index(tmp_path, "--image", "face.jpg") == 0
    assert samples(tmp_path) == {"0": jpeg(1)}
    tables = {path.name.partition(".")[0] for path in tmp_path.glob("*.samples.npy")}
    assert tables == {"b", "theirs", "empty", "folder"}
    capsys.readouterr()
    assert glci("shards", "verify", tmp_path) == 2
    captured = capsys.readouterr()
    told = dict(line.split(" is extra: ") for line in captured.out.splitlines())
    assert "move the tar out of the folder" in told.pop("a.tar")
    assert set(told) == {"theirs.tar.samples.npy", "empty.tar.samples.npy"}
    assert all("move it out of the folder" in line for line in told.values())
    assert captured.err.startswith("glci: error: 3 files of ")
    assert "build the shards again" not in captured.err
    for name in ("a.tar", "theirs.tar.samples.npy", "empty.tar.samples.npy"):
        (tmp_path / name).unlink()
    assert glci("shards", "verify", tmp_path) == 0


def test_an_index_that_is_killed_before_the_old_tables_are_gone_leaves_a_folder_that_reads_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": jpeg(0)})
    write_tar(tmp_path / "b.tar", {"0.jpg": jpeg(0), "0.face.jpg": jpeg(1)})
    assert index(tmp_path) == 0
    program = f"""
import os, signal, sys
from glci_dist.cli import main
sys.addaudithook(lambda event, _: os.kill(os.getpid(), signal.SIGKILL) if event == "os.remove" else None)
main(["shards", "index", {str(tmp_path)!r}, "--image", "face.jpg", "--processes", "1"])
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=100, check=False).returncode == -signal.SIGKILL
    assert samples(tmp_path) == {"0": jpeg(1)}
    assert (tmp_path / "a.tar.samples.npy").exists()
    capsys.readouterr()
    assert glci("shards", "verify", tmp_path) == 2
    assert "`glci shards index` removes it" in capsys.readouterr().out
    assert index(tmp_path, "--image", "face.jpg") == 0
    assert not (tmp_path / "a.tar.samples.npy").exists()


def test_of_two_images_of_one_name_the_later_counts_as_in_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, name in enumerate(["a.jpg", "a.json", "a.jpg", "b.jpg"]):
            header = tarfile.TarInfo(name)
            header.size = len(jpeg(number))
            archive.addfile(header, io.BytesIO(jpeg(number)))
    assert index(tmp_path) == 0
    assert samples(tmp_path) == {"a": jpeg(2), "b": jpeg(3)}
    (reason,) = rejects(tmp_path).values()
    assert reason == "a later file of its sample has the same name and replaces it"
    told = capsys.readouterr().out
    assert "found 3 images: 2 indexed, 1 left out" in told
    assert "--image" not in told
    assert glci("shards", "build", tmp_path / "a.tar", tmp_path / "s", "--processes", 1) == 0
    assert samples(tmp_path / "s") == samples(tmp_path)


def test_a_tars_own_name_steers_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\nb.tar"
    write_tar(tmp_path / name, {"a.jpg": jpeg(0), "a.png": jpeg(1)})
    assert index(tmp_path) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert f"e.g. {name!r}/'a.png'" in told
    assert index(tmp_path, "--image", "gif") == 2
    assert "\x1b" not in capsys.readouterr().err
