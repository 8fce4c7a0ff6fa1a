"""`glci shards verify` names each bad file of a folder; `show` draws what is in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glci_dist.data.index import load_index
from glci_dist.data.verify import check_shards
from glci_dist.errors import UserError
from tests.data.shards_help import encoded, glci, pixels, some_photos, write_folder, write_tar


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of four shards."""
    source = write_folder(tmp_path / "photos", some_photos(20))
    assert glci("shards", "build", source, tmp_path / "shards", "--samples", 5, "--processes", 1) == 0
    return tmp_path / "shards"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def test_a_whole_folder_passes(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_shards(load_index(str(shards)))
    for options in ((), ("--quick",)):
        assert glci("shards", "verify", shards, *options) == 0
        assert "4 shards, 20 photos" in capsys.readouterr().out


TAR, TABLE = "shard-000002.tar", "shard-000002.tar.samples.npy"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str, bool]] = {
    "changed": (TAR, flip_a_byte, "is changed", False),
    "cut": (TAR, cut, "is cut", True),
    "longer": (TAR, lengthen, "is changed", True),
    "deleted": (TAR, Path.unlink, "is missing", True),
    "table changed": (TABLE, flip_a_byte, "is changed", True),
    "table deleted": (TABLE, Path.unlink, "is missing", True),
    "extra": ("shard-000009.tar", Path.touch, "is extra", True),
    "extra table": ("shard-000009.tar.samples.npy", Path.touch, "is extra", True),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_the_bad_file_and_no_other(shards: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    name, spoil, reason, quick_sees_it = DAMAGES[damage]
    spoil(shards / name)
    capsys.readouterr()
    assert glci("shards", "verify", shards, "--processes", 2) == 2
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert line.startswith(f"{name} {reason}")
    assert captured.err.startswith("glci: error: 1 file")
    assert glci("shards", "verify", shards, "--quick") == (2 if quick_sees_it else 0)


def test_verify_names_every_bad_file(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_byte(shards / "shard-000000.tar")
    (shards / "shard-000001.tar").unlink()
    cut(shards / "shard-000003.tar")
    capsys.readouterr()
    assert glci("shards", "verify", shards) == 2
    assert [line[:16] for line in capsys.readouterr().out.splitlines()] == [
        "shard-000000.tar",
        "shard-000001.tar",
        "shard-000003.tar",
    ]


@pytest.mark.parametrize("damage", ["cut", "longer", "deleted", "table deleted"])
def test_the_check_before_a_run_names_a_shard_that_does_not_match(shards: Path, damage: str) -> None:
    name, spoil, _, _ = DAMAGES[damage]
    index = load_index(str(shards))
    spoil(shards / name)
    with pytest.raises(UserError, match=TAR):
        check_shards(index)


def test_an_index_with_another_count_than_its_shard_is_found(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = json.loads((shards / "index.json").read_text())
    index["shards"][1]["samples"] += 1
    index["total"] += 1
    (shards / "index.json").write_text(json.dumps(index))
    capsys.readouterr()
    assert glci("shards", "verify", shards, "--quick") == 2
    assert "has 5 samples, the index says 6" in capsys.readouterr().out


def test_verify_reads_local_folders_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert glci("shards", "verify", "gs://bucket/shards") == 2
    assert "refused" in capsys.readouterr().err


def test_show_draws_the_photos_and_crosses_out_bad_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = Image.fromarray(np.ascontiguousarray(pixels(0, width=128, height=128)))
    image.save(tmp_path / "good.png")
    photos = {"0.png": (tmp_path / "good.png").read_bytes(), "1.png": b"no photo"}
    write_tar(tmp_path / "a.tar", photos)
    assert glci("shards", "index", tmp_path, "--processes", 1) == 0
    capsys.readouterr()
    assert glci("shards", "show", tmp_path, "--out", tmp_path / "sheet.png") == 0
    out = capsys.readouterr().out
    assert "2 photos in 1 shard" in out
    assert "edges 128 to 128 px" in out
    assert "1 not decodable" in out
    assert out.splitlines()[-1] == f"picture: {tmp_path / 'sheet.png'}"
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 + 132, 4 + 2 * 132, 3)
    assert np.array_equal(sheet[4:132, 4:132], pixels(0, width=128, height=128))
    assert tuple(sheet[4 + 64, 136 + 64]) == (255, 0, 0)


def test_show_draws_a_random_sample_that_the_seed_decides(shards: Path, tmp_path: Path) -> None:
    def draw(seed: int) -> bytes:
        out = tmp_path / "sheet.png"
        assert glci("shards", "show", shards, "--out", out, "--photos", 4, "--seed", seed) == 0
        return out.read_bytes()

    assert draw(1) == draw(1) != draw(2)
    assert Image.open(tmp_path / "sheet.png").size == (4 + 2 * 132, 4 + 2 * 132)


def test_a_contact_sheet_that_cannot_be_made_is_one_clear_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert glci("shards", "show", shards, "--photos", 0) == 2
    assert "--photos 0" in capsys.readouterr().err
    assert glci("shards", "show", shards, "--out", tmp_path / "none" / "sheet.png") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert glci("shards", "show", shards, "--out", tmp_path / "sheet.foo") == 2
    assert "sheet.foo: a contact sheet is a PNG; give a name that ends in .png" in capsys.readouterr().err
    assert not (tmp_path / "sheet.foo").exists()


def test_a_contact_sheet_takes_the_place_of_an_earlier_one_and_of_no_other_picture(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    for _ in range(2):
        assert glci("shards", "show", shards, "--out", out, "--photos", 1) == 0
    Image.new("RGB", (8, 8)).save(out)
    theirs = out.read_bytes()
    capsys.readouterr()
    assert glci("shards", "show", shards, "--out", out) == 2
    assert "sheet.png is there and is no contact sheet of glci" in capsys.readouterr().err
    assert out.read_bytes() == theirs


def test_a_name_of_control_characters_makes_no_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "a.tar", {"x\n00001.tar/good.jpg": b"", "\x1b[31mred.jpg": b"junk"})
    assert glci("shards", "index", tmp_path) == 0
    capsys.readouterr()
    assert glci("shards", "verify", tmp_path) != 0
    told = capsys.readouterr()
    assert told.out.count("\n") == 2
    assert told.err.count("\n") == 1
    assert "\x1b" not in told.out + told.err


def test_what_index_leaves_out_without_a_photo_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"0.jpg": encoded(Image.fromarray(pixels(0)), "JPEG")}
    write_tar(tmp_path / "a.tar", good)
    write_tar(tmp_path / "empty.tar", {})
    write_tar(tmp_path / "labels.tar", {"0.json": b"{}"})
    write_folder(tmp_path, {"._a.tar": b"of macOS", ".a.tar": b"", ".a.tar.samples.npy": b"", ".x.tmp": b""})
    assert glci("shards", "index", tmp_path, "--processes", 1) == 0
    assert "verify" not in capsys.readouterr().out
    for options in ((), ("--quick",)):
        assert glci("shards", "verify", tmp_path, *options) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [f"{name}.tar is left out of the index: no photo is in it" for name in ("empty", "labels")]
        assert len(lines) == 3
    # A tar of photos is to be taken in, and one that cannot be read, even to its last byte, was lost.
    write_tar(tmp_path / "b.tar", good)
    (tmp_path / "void.tar").touch()
    (tmp_path / "cut.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    assert glci("shards", "verify", tmp_path) == 2
    told = capsys.readouterr()
    extra = dict(line.split(" is extra: ") for line in told.out.splitlines() if " is extra: " in line)
    assert set(extra) == {"b.tar", "cut.tar", "void.tar"}
    assert "take its photos in with `glci shards index`" in extra["b.tar"]
    assert "glci shards index" not in extra["void.tar"]
    assert "is cut" in extra["cut.tar"]
    assert "3 files" in told.err
