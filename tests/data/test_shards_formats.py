"""Photos of every format are built and indexed, or named with the reason; of animations the first picture, told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from glci_dist.data.index import load_index
from glci_dist.data.plan import BuildJournal, FinishedShard
from tests.data.shards_help import encoded, glci, jpeg, pixels, write_folder, write_tar
from tests.data.test_shards_build import read_samples
from tests.data.test_shards_sources import build, rejects

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)


def test_photos_of_every_format_are_built_or_named_with_the_reason(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(1))
    kinds = {"avif": "AVIF", "gif": "GIF", "jp2": "JPEG2000", "j2k": "JPEG2000", "ppm": "PPM", "pgm": "PPM"}
    photos = {
        f"{end}.{end}": encoded(image.convert("L") if end == "pgm" else image.copy(), kinds[end]) for end in kinds
    }
    jxl = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99)
    unread = {"phone.heic": HEIC, "phone.HEIF": HEIC, "new.jxl": jxl}
    # Its content decides: what a phone converted and did not rename.
    files = {**photos, **unread, "renamed.heic": jpeg(2)}
    assert build(write_folder(tmp_path / "photos", files), tmp_path / "s") == 0
    assert set(read_samples(tmp_path / "s")) == {*kinds, "renamed"}
    found = rejects(tmp_path / "s")
    assert set(found) == set(unread)
    assert all("which is not read here: convert it to JPEG" in reason for reason in found.values())

    write_tar(
        tmp_path / "theirs.tar", {name.lower().replace("phone.heif", "other.heif"): files[name] for name in files}
    )
    assert glci("shards", "index", tmp_path, "--processes", 1) == 0
    assert load_index(str(tmp_path)).total == len(kinds) + 1
    left_out = rejects(tmp_path, "index-rejects.jsonl")
    assert set(left_out) == {f"theirs.tar/{name}" for name in ("phone.heic", "other.heif", "new.jxl")}
    assert all("which is not read here: convert it to JPEG" in reason for reason in left_out.values())


def test_of_several_pictures_the_first_is_taken_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Image.fromarray(pixels(1)), Image.fromarray(255 - pixels(1))
    several = {"a.gif": "GIF", "b.webp": "WEBP", "c.png": "PNG", "d.tif": "TIFF", "e.avif": "AVIF"}
    photos = {
        name: encoded(first.copy(), kind, save_all=True, append_images=[second]) for name, kind in several.items()
    }
    one = {f"one.{kind.lower()}": encoded(first.copy(), kind) for kind in several.values()}
    source = write_folder(tmp_path / "photos", {**photos, **one, "f.jpg": jpeg(1)})
    assert build(source, tmp_path / "s", "--samples", 3) == 0
    told = (
        "5 photos have several pictures (an animation, pages), the first taken: 'a.gif', 'b.webp', 'c.png' and 2 more"
    )
    assert told in capsys.readouterr().out
    for photo in read_samples(tmp_path / "s").values():
        assert np.abs(simplejpeg.decode_jpeg(photo).astype(int) - pixels(1)).mean() < 8


def test_a_build_that_was_stopped_still_knows_which_photos_had_several_pictures(tmp_path: Path) -> None:
    with BuildJournal(tmp_path) as journal:
        journal.add(FinishedShard("shard-000000.tar", None, (), ("a.gif",)))
    with BuildJournal(tmp_path) as journal:
        assert journal.finished["shard-000000.tar"].several == ("a.gif",)
