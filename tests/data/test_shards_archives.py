"""Archives that are joined, in volumes, encrypted, cut or of other kinds are told for what they are."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.data.shards_help import glci, jpeg, write_folder, write_tar, write_zip
from tests.data.test_shards_sources import add, build, rejects


def test_zips_joined_by_cat_are_refused_and_not_read_from_the_last_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = b""
    for first in (0, 3):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for number in range(first, first + 3):
                archive.writestr(f"{number}.jpg", jpeg(number))
            archive.comment = b"of one of two"
        whole += file.getvalue()
    (tmp_path / "joined.zip").write_bytes(whole)
    assert glci("shards", "build", tmp_path / "joined.zip", tmp_path / "shards") == 2
    assert "joined by cat" in capsys.readouterr().err
    # Bytes before the archive that are none (a program that unpacks itself) stand in no photo's way.
    (tmp_path / "self.zip").write_bytes(
        b"#!/bin/sh" + whole[len(whole) // 2 :][whole[len(whole) // 2 :].index(b"PK\x03\x04") :]
    )
    assert glci("shards", "build", tmp_path / "self.zip", tmp_path / "shards") == 0


def test_a_volume_of_a_tar_is_told_and_a_backups_folder_is_no_photo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kind in (("volume.tar", b"M"), ("backup.tar", b"D")):
        with tarfile.open(tmp_path / name, "w") as archive:
            add(archive, "photos/", kind=kind)
            add(archive, "photos/a.jpg", jpeg(1))
    assert build(tmp_path / "volume.tar", tmp_path / "v") == 2
    assert "one volume of a tar in several" in capsys.readouterr().err
    assert build(tmp_path / "backup.tar", tmp_path / "b") == 0
    assert "found 1 photo: 1 built, 0 rejected" in capsys.readouterr().out


def test_an_encrypted_zip_is_told_in_words_and_its_other_photos_are_built(tmp_path: Path) -> None:
    content = bytearray(write_zip(tmp_path / "p.zip", {"a.jpg": jpeg(1), "b.jpg": jpeg(2)}).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "p.zip").write_bytes(content)
    assert build(tmp_path / "p.zip", tmp_path / "s") == 0
    assert rejects(tmp_path / "s") == {
        "a.jpg": "it cannot be read: encrypted: unpack the zip with its password and give the folder"
    }


def test_what_ends_a_tar_too_early_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = tarfile.TarInfo("a.jpg")
    header.size = 1 << 80
    (tmp_path / "huge.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    whole = write_tar(tmp_path / "whole.tar", {"a.jpg": jpeg(1), "b.jpg": bytes(30_000)})
    subprocess.run(["tar", "-cM", "-L", "30", "-f", "one.tar", "-f", "two.tar", whole.name], cwd=tmp_path, check=True)
    assert build(tmp_path / "huge.tar", tmp_path / "s") == 2
    assert "huge.tar is cut, damaged or no plain tar: a header gives a size that no file has" in capsys.readouterr().err
    assert build(tmp_path / "one.tar", tmp_path / "s") == 2
    assert "if it is the first volume of several (tar -M), unpack them together (tar -xMf)" in capsys.readouterr().err


@pytest.mark.parametrize(("end", "magic"), [("lzma", b"\x5d\0\0\x80\0"), ("lz", b"LZIP\x01")])
def test_other_compressions_of_a_tar_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str, magic: bytes
) -> None:
    packed = write_folder(tmp_path / "t", {f"a.tar.{end}": magic + bytes(range(99))}) / f"a.tar.{end}"
    assert build(packed, tmp_path / "s") == 2
    assert "is compressed with lz" in capsys.readouterr().err
    write_tar(tmp_path / "t" / "b.tar", {"a.jpg": jpeg(1)})
    assert glci("shards", "index", tmp_path / "t", "--processes", 1) == 0
    assert f"compressed tars left out; unpack them (gunzip and the like), then index again: 'a.tar.{end}'" in (
        capsys.readouterr().out
    )
    assert build(tmp_path / "t", tmp_path / "s") == 2
    assert "2 archives in the source not looked into" in capsys.readouterr().err


def test_the_kinds_of_a_tars_members_are_told_apart(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "good.jpg", jpeg(1))
        for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            add(archive, f"{kind.decode()}.jpg", kind=kind)
        add(archive, "Z.jpg", b"?", kind=b"Z")
    assert build(tmp_path / "a.tar", tmp_path / "s") == 0
    told = {name: reason.removeprefix("it cannot be read: ") for name, reason in rejects(tmp_path / "s").items()}
    assert told == {
        "3.jpg": "a device, not a file",
        "4.jpg": "a device, not a file",
        "6.jpg": "a named pipe, not a file",
        "Z.jpg": "a member of a type that is not known here (b'Z'), not a file",
    }
