"""`glci shards build` turns photos into shards, and drops none in silence."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import webdataset
from PIL import Image
from webdataset import TarWriter

from glci_dist.data.pixels import DecodeError
from glci_dist.data.shard_jpeg import to_shard_jpeg
from tests.data.shards_help import (
    TURNS,
    contents,
    encoded,
    glci,
    jpeg,
    pixels,
    some_photos,
    write_folder,
    write_tar,
    write_zip,
)


def read_samples(folder: Path) -> dict[str, bytes]:
    """Key and photo of each sample, as the webdataset library reads them."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False)
    return {sample["__key__"]: sample["jpg"] for sample in dataset}


def test_webdataset_reads_the_shards_and_finds_every_jpeg_byte_for_byte(tmp_path: Path) -> None:
    photos = some_photos(25)
    source = write_folder(tmp_path / "photos", photos)
    assert glci("shards", "build", source, tmp_path / "shards", "--samples", 10, "--processes", 1) == 0
    expected = {name.removesuffix(".jpg").replace("/", "_"): content for name, content in photos.items()}
    assert read_samples(tmp_path / "shards") == expected
    assert [record["samples"] for record in read_index(tmp_path / "shards")] == [10, 10, 5]


def test_a_shard_has_the_bytes_that_webdatasets_own_writer_gives_the_same_photos(tmp_path: Path) -> None:
    # A name that needs an extended header too.
    photos = some_photos(5) | {"写真" * 40 + ".jpg": jpeg(9)}
    source = write_folder(tmp_path / "photos", photos)
    assert glci("shards", "build", source, tmp_path / "shards", "--no-shuffle", "--processes", 1) == 0
    (shard,) = (tmp_path / "shards").glob("*.tar")
    with TarWriter(str(tmp_path / "theirs.tar"), user="", group="", mode=0o644, mtime=0, encoder=False) as theirs:
        for key, photo in read_samples(tmp_path / "shards").items():
            theirs.write({"__key__": key, "jpg": photo})
    assert shard.read_bytes() == (tmp_path / "theirs.tar").read_bytes()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_folder_and_its_archive_give_the_same_shards_in_any_number_of_processes(tmp_path: Path, kind: str) -> None:
    photos = some_photos(23)
    folder = write_folder(tmp_path / "photos", photos)
    write = write_zip if kind == "zip" else write_tar
    prefix = "" if kind == "zip" else "./"  # what `tar -C photos .` writes
    archive = write(tmp_path / f"photos.{kind}", {prefix + name: photos[name] for name in reversed(photos)})
    assert glci("shards", "build", folder, tmp_path / "one", "--samples", 5, "--processes", 1) == 0
    assert glci("shards", "build", archive, tmp_path / "two", "--samples", 5, "--processes", 2) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not list((tmp_path / "two").glob("*.tmp"))


def test_the_seed_decides_the_order_and_no_shuffle_keeps_that_of_names(tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", some_photos(20))

    def order(*options: object) -> list[str]:
        folder = tmp_path / "-".join(map(str, options))
        assert glci("shards", "build", photos, folder, "--processes", 1, *options) == 0
        return list(read_samples(folder))

    by_name = order("--no-shuffle")
    assert by_name == sorted(by_name)
    assert order("--seed", 1) != order("--seed", 2)
    assert sorted(order("--seed", 3)) == by_name


def test_photos_that_cannot_be_decoded_are_listed_and_named_on_the_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = some_photos(6)
    cut, text, empty = "train/cut.jpg", "text.png", "empty.jpg"
    source = write_folder(tmp_path / "photos", {**photos, cut: jpeg(1)[:-300], text: b"no photo", empty: b""})
    (source / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert glci("shards", "build", source, tmp_path / "shards", "--processes", 1) == 0
    rejects_file = tmp_path / "shards" / "rejects.jsonl"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("4 photos could not be decoded")
    assert str(rejects_file) in last
    rejects = {r["name"]: r["reason"] for r in map(json.loads, rejects_file.read_text().splitlines())}
    assert set(rejects) == {cut, text, empty, "gone.jpg"}
    assert "No such file" in rejects["gone.jpg"]
    assert "remature end" in rejects[cut]
    assert len(read_samples(tmp_path / "shards")) == len(photos)


def test_a_shard_of_bad_photos_alone_is_left_out(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "photos", {"a.jpg": jpeg(1), "b.jpg": b"", "c.jpg": jpeg(2)})
    assert glci("shards", "build", source, tmp_path / "s", "--no-shuffle", "--samples", 1) == 0
    assert [record["name"] for record in read_index(tmp_path / "s")] == [
        "shard-000000.tar",
        "shard-000002.tar",
    ]


def test_other_files_and_those_not_included_are_left_out_and_the_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"README.md": b"", "train/labels.json": b"", "train/._a.jpg": b"", "val/a.jpg": jpeg(1)}
    source = write_folder(tmp_path / "photos", {**files, "train/b.JPG": jpeg(2), "train/x/c.jpeg": jpeg(3)})
    assert glci("shards", "build", source, tmp_path / "s", "--include", "train/*", "--processes", 1) == 0
    assert set(read_samples(tmp_path / "s")) == {"train_b", "train_x_c"}
    told = capsys.readouterr().out
    assert "1 file that is no photo by extension left out (1 .json): 'train/labels.json'" in told
    assert "1 photo hidden, or in hidden or machine-made folders, left out: 'train/._a.jpg'" in told
    assert "1 of 3 photos match no --include 'train/*' (1 .jpg): 'val/a.jpg'" in told


def test_photos_whose_keys_would_be_equal_keep_keys_of_their_own(tmp_path: Path) -> None:
    names = ["a/b.jpg", "a_b.jpg", "a/b.png", "v1.2/c.d.jpg", "visage-é.jpg", f"{'long' * 40}.jpg"]
    photos = {name: jpeg(number) for number, name in enumerate(names)}
    source = write_folder(tmp_path / "photos", photos)
    assert glci("shards", "build", source, tmp_path / "s", "--processes", 1) == 0
    samples = read_samples(tmp_path / "s")
    assert sorted(samples.values()) == sorted(photos.values())
    assert {"v1_2_c_d", "visage-é", "long" * 40} < set(samples)
    assert all("." not in key and "/" not in key for key in samples)


def decoded(photo: bytes, **options: object) -> np.ndarray:
    """What the shard holds for this photo, in pixels."""
    settings = {"size": None, "quality": 95, **options}
    return simplejpeg.decode_jpeg(to_shard_jpeg(photo, **settings)).astype(int)  # type: ignore[arg-type]


def test_other_formats_become_jpegs_of_the_same_picture() -> None:
    picture = pixels(3)
    image = Image.fromarray(picture)
    for kind, options in {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}.items():
        assert np.abs(decoded(encoded(image, kind, **options)) - picture).max() <= 4, kind


def test_a_photo_that_exif_turns_stands_upright() -> None:
    picture = pixels(3)
    for orientation, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = encoded(Image.fromarray(np.ascontiguousarray(turn(picture))), "JPEG", quality=98, exif=exif)
        assert np.abs(decoded(stored) - picture).mean() < 3, orientation


def test_a_larger_photo_is_scaled_to_the_short_edge_and_a_smaller_one_kept() -> None:
    large = jpeg(1, width=640, height=400)
    assert decoded(large, size=64).shape == (64, 102, 3)
    same_picture = Image.fromarray(pixels(1, width=640, height=400)).resize((102, 64), Image.Resampling.BOX)
    assert np.abs(decoded(large, size=64) - np.asarray(same_picture).astype(int)).mean() < 2
    assert to_shard_jpeg(jpeg(1), size=40, quality=95) == jpeg(1)


def test_transparency_becomes_white_and_16_bits_become_8() -> None:
    clear = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    assert decoded(encoded(clear, "PNG")).min() >= 254
    deep = Image.fromarray(np.full((32, 32), 100 << 8, np.uint16))
    assert np.abs(decoded(encoded(deep, "PNG")) - 100).max() <= 1


def test_a_grey_jpeg_is_copied_and_a_cmyk_one_becomes_rgb() -> None:
    grey = encoded(Image.fromarray(pixels(3)).convert("L"), "JPEG")
    assert to_shard_jpeg(grey, size=None, quality=95) == grey
    red = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(decoded(red) - [255, 0, 0]).max() <= 6


def test_a_photo_too_large_to_decode_is_refused_with_its_size() -> None:
    bomb = bytearray(jpeg(1))
    start_of_frame = bomb.index(b"\xff\xc0")
    bomb[start_of_frame + 5 : start_of_frame + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(DecodeError, match="pixels"):
        to_shard_jpeg(bytes(bomb), size=None, quality=95)


def test_what_cannot_be_built_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_folder(tmp_path / "photos", some_photos(3))
    whole = write_tar(tmp_path / "whole.tar", some_photos(9)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    zipped = write_zip(tmp_path / "whole.zip", some_photos(9)).read_bytes()
    (tmp_path / "cut.zip").write_bytes(zipped[: len(zipped) // 2])
    packed = write_tar(tmp_path / "whole.tar.gz", some_photos(9)).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(packed[: len(packed) // 2])
    bad = write_folder(tmp_path / "bad", {"a.jpg": b"no photo"})
    tars = write_folder(tmp_path / "tars", {"their.tar": whole})

    def refused(source: Path | str, *options: object, dest: Path | str = tmp_path / "s") -> str:
        assert glci("shards", "build", source, dest, "--processes", 1, *options) == 2
        error = capsys.readouterr().err
        assert error.startswith("glci: error: ")
        assert error.count("\n") == 1
        return error

    assert "does not exist" in refused(tmp_path / "none")
    assert "no folder, .zip or .tar" in refused(photos / "train" / "face 001.jpg")
    assert "--include 'val/*'" in refused(photos, "--include", "val/*")
    assert "--samples 0" in refused(photos, "--samples", 0)
    assert "--quality 101" in refused(photos, "--quality", 101)
    assert "--size 0" in refused(photos, "--size", 0)
    assert "--processes 0" in refused(photos, "--processes", 0)
    assert "cut.tar is cut" in refused(tmp_path / "cut.tar")
    assert "cut.zip" in refused(tmp_path / "cut.zip")
    assert "cut.tar.gz is damaged or cut" in refused(tmp_path / "cut.tar.gz")
    assert "their.tar" in refused(photos, dest=tars)
    assert "remote" in refused(photos, dest="s3://bucket/shards")
    assert "pipe:" in refused("pipe:cat photos.tar")
    assert "none of the 1 photos" in refused(bad, dest=tmp_path / "none-good")
    assert not list(tmp_path.glob("s/*.tmp"))


def test_members_of_a_shard_are_the_same_on_every_machine_and_day(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "photos", some_photos(3))
    assert glci("shards", "build", source, tmp_path / "s", "--processes", 1) == 0
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "s" / "shard-000000.tar").read_bytes())) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o644)


def read_index(folder: Path) -> list[dict[str, object]]:
    """The index's records of shards."""
    return list(json.loads((folder / "index.json").read_text())["shards"])
