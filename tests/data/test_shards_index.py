"""The index of shards, ours and others', points at every photo; a bad one is one clear line."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from glci_dist.config import CacheConfig
from glci_dist.data.index import Index, load_index, parse_table, table_name
from glci_dist.data.store import ShardStore
from glci_dist.errors import UserError
from tests.data.shards_help import contents, glci, jpeg, some_photos, write_folder, write_tar


def all_samples(index: Index) -> list[tuple[str, bytes]]:
    """Key and photo of each sample, in order, read by offset."""
    store = ShardStore(index, CacheConfig())
    return [
        store.sample(shard, number)
        for shard in range(len(index.shards))
        for number in range(index.shards[shard].samples)
    ]


def test_index_and_build_write_the_same_for_the_same_tars(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "photos", some_photos(23))
    assert glci("shards", "build", source, tmp_path / "ours", "--samples", 5, "--processes", 1) == 0
    tars = {path.name: path.read_bytes() for path in (tmp_path / "ours").glob("*.tar")}
    theirs = write_folder(tmp_path / "theirs", tars)
    assert glci("shards", "index", theirs, "--processes", 2) == 0
    assert contents(theirs) == contents(tmp_path / "ours")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_others_are_read_by_offset(tmp_path: Path, form: int) -> None:
    long = f"{'folder' * 15}/{'name' * 20}"
    files = {
        "000.json": b"{}",
        "000.jpg": jpeg(0),
        "000.png": b"a second photo",
        "a/001.cls": b"3",
        "a/001.seg.png": b"no photo of the sample's",
        "a/001.JPEG": jpeg(1),
        "notes": b"of no sample",
        "002.txt": b"a sample without a photo",
        f"{long}.webp": jpeg(3),
        f"{long}2.jpg": jpeg(4),
    }
    write_tar(tmp_path / "b.tar", files, form=form)
    write_tar(tmp_path / "a.tar", {"000.jpg": jpeg(9)}, form=form)
    assert glci("shards", "index", tmp_path, "--processes", 1) == 0
    index = load_index(str(tmp_path))
    assert [shard.name for shard in index.shards] == ["a.tar", "b.tar"]
    expected = [("000", 9), ("000", 0), ("a/001", 1), (long, 3), (f"{long}2", 4)]
    assert all_samples(index) == [(key, jpeg(number)) for key, number in expected]


def test_samples_without_a_photo_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "a.tar", {"0.txt": b"", "1.jpg": jpeg(1), "2.txt": b""})
    assert glci("shards", "index", tmp_path, "--processes", 1) == 0
    assert "2 samples without" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["in a photo", "in a header", "after a photo", "before the end", "joined"])
def test_a_cut_or_joined_tar_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    whole = write_tar(tmp_path / "cut.tar", {f"{number}.jpg": jpeg(number) for number in range(3)})
    with tarfile.open(whole) as archive:
        last = archive.getmembers()[-1]
        end = last.offset_data + -(-last.size // 512) * 512
    cuts = {
        "in a photo": last.offset_data + 100,
        "in a header": last.offset + 100,
        "after a photo": last.offset,
        "before the end": end,
    }
    content = whole.read_bytes()
    whole.write_bytes(content * 2 if place == "joined" else content[: cuts[place]])
    assert glci("shards", "index", tmp_path, "--processes", 1) == 2
    error = capsys.readouterr().err
    assert "cut.tar" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "index.json").exists()


def test_folders_that_hold_no_shards_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "unindexed", {"a.tar": b""})
    write_folder(tmp_path / "text", {"a.tar": b"no tar at all" * 100})
    (tmp_path / "photoless").mkdir()
    write_tar(tmp_path / "photoless" / "a.tar", {"a.txt": b""})

    def refused(command: str, folder: Path) -> str:
        assert glci("shards", command, folder) == 2
        return capsys.readouterr().err

    assert "no shards" in refused("index", tmp_path / "empty")
    assert "no folder" in refused("index", tmp_path / "none")
    assert "a.tar is cut, damaged or no plain tar" in refused("index", tmp_path / "text")
    assert "a.tar has no jpg" in refused("index", tmp_path / "photoless")
    for command in ("verify", "show"):
        assert "no shards" in refused(command, tmp_path / "empty")
        assert "no shards" in refused(command, tmp_path / "none")
        assert "glci shards index" in refused(command, tmp_path / "unindexed")


def test_a_malformed_index_is_one_clear_line(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": jpeg(0)})
    assert glci("shards", "index", tmp_path, "--processes", 1) == 0
    good = json.loads((tmp_path / "index.json").read_text())
    shard = good["shards"][0]
    bad_indexes = {
        "no JSON": "{",
        "format": json.dumps({**good, "format": "glci-shards-9"}),
        "no list": json.dumps({**good, "shards": None}),
        "no shards": json.dumps({**good, "shards": []}),
        "twice": json.dumps({**good, "shards": [shard, shard]}),
        "total": json.dumps({**good, "total": 2}),
        "shard 0 is not": json.dumps({**good, "shards": [{"name": "a.tar"}]}),
        "../a.tar": json.dumps({**good, "shards": [{**shard, "name": "../a.tar"}]}),
        "'a.tar'": json.dumps({**good, "shards": [{**shard, "samples": 0}]}),
        "('a.tar'": json.dumps({**good, "shards": [{**shard, "sha256": "0"}]}),
    }
    for reason, text in bad_indexes.items():
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(UserError) as caught:
            load_index(str(tmp_path))
        assert reason in str(caught.value), reason
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="pipe:"):
        load_index("pipe:cat /etc/passwd")


def test_a_sample_table_that_does_not_fit_its_shard_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": jpeg(0)})
    write_tar(tmp_path / "b.tar", {"0.jpg": jpeg(0), "1.jpg": jpeg(1)})
    assert glci("shards", "index", tmp_path, "--processes", 1) == 0
    first, second = load_index(str(tmp_path)).shards
    table = (tmp_path / table_name("b.tar")).read_bytes()
    assert len(parse_table(table, second)) == 2
    for content, shard in ((table, first), (table[:-1], second), (b"", second), (b"text", second)):
        with pytest.raises(UserError, match="does not match"):
            parse_table(content, shard)


def test_tars_in_a_folder_below_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "part1").mkdir()
    for name in ("a.tar", "part1/b.tar"):
        write_tar(tmp_path / name, {"a.jpg": jpeg(1)})
    assert glci("shards", "index", tmp_path) == 0
    captured = capsys.readouterr()
    assert "folders with tars of their own left out; index each by itself: 'part1'" in captured.out + captured.err
