"""What a decoder stumbles over is either no damage, and decoded, or that photo's by name, whatever was raised."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from glci_dist.data import other_formats
from glci_dist.data.decode import DecodeError, decode
from glci_dist.data.shard_jpeg import to_shard_jpeg
from tests.data.conftest import draw_photo
from tests.data.shards_help import PEAK, broken_avif, encoded, glci, jpeg, write_folder, write_tar

IMAGE = Image.fromarray(draw_photo(11, 48, 64))
BASELINE = encoded(IMAGE.copy(), "JPEG", quality=92)
PROGRESSIVE = encoded(IMAGE.copy(), "JPEG", quality=92, progressive=True)
RESTARTS = encoded(IMAGE.copy(), "JPEG", quality=92, restart_marker_blocks=2)
CMYK = encoded(IMAGE.convert("CMYK"), "JPEG", quality=92)
CMYK_420 = encoded(IMAGE.convert("CMYK"), "JPEG", quality=92, subsampling=2)
DQT, SOF, DHT, SOS = b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda"
JUNK = b"junk \0\x01\x02"


# Pytest lets every warning through, also those that a command would not show.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def before(marker: bytes, junk: bytes, photo: bytes = BASELINE) -> bytes:
    place = photo.rindex(marker)
    return photo[:place] + junk + photo[place:]


HARMLESS = {
    "junk after the beginning": (BASELINE[:2] + JUNK + BASELINE[2:], BASELINE),
    "junk before the tables": (before(DQT, JUNK), BASELINE),
    "zeros before the frame": (before(SOF, bytes(7)), BASELINE),
    "junk before the codes": (before(DHT, JUNK), BASELINE),
    "junk before the scan": (before(SOS, JUNK), BASELINE),
    "fill bytes before the scan": (before(SOS, b"\xff" * 9), BASELINE),
    "junk before the end": (BASELINE[:-2] + JUNK + BASELINE[-2:], BASELINE),
    "much junk before the end": (BASELINE[:-2] + JUNK * 99 + BASELINE[-2:], BASELINE),
    "zeros before the end": (BASELINE[:-2] + bytes(3) + BASELINE[-2:], BASELINE),
    "junk after the end": (BASELINE + JUNK, BASELINE),
    "junk in every place": (
        before(DQT, JUNK, before(SOS, JUNK))[:-2] + JUNK + b"\xff\xd9" + JUNK,
        BASELINE,
    ),
    "junk before a progressive scan's codes": (before(SOS, JUNK, PROGRESSIVE), PROGRESSIVE),
    "junk before a progressive end": (PROGRESSIVE[:-2] + JUNK + PROGRESSIVE[-2:], PROGRESSIVE),
    "no end": (BASELINE[:-2], BASELINE),
    "half an end": (BASELINE[:-1], BASELINE),
    "a progressive one without end": (PROGRESSIVE[:-2], PROGRESSIVE),
    "with restart markers, no end": (RESTARTS[:-2], RESTARTS),
    "another JFIF": (BASELINE.replace(b"JFIF\0\1", b"JFIF\0\3"), BASELINE),
    "cmyk, subsampled, junk before the scan": (before(SOS, JUNK, CMYK_420), CMYK_420),
    "cmyk, junk before the scan": (before(SOS, JUNK, CMYK), CMYK),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_a_jpeg_that_lost_no_pixel_is_decoded_as_without_its_flaw(case: str) -> None:
    flawed, sound = HARMLESS[case]
    for short_edge in (None, 20, 48):
        assert (decode(flawed, short_edge=short_edge) == decode(sound, short_edge=short_edge)).all()
    kept = to_shard_jpeg(flawed, size=None, quality=95)
    simplejpeg.decode_jpeg(kept)  # strict: other readers of the shards take it too
    if sound not in (CMYK, CMYK_420):
        assert (decode(kept, short_edge=None) == decode(sound, short_edge=None)).all()
        assert kept == flawed or len(kept) <= len(flawed) + 2


def test_a_flawed_jpeg_keeps_its_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(IMAGE.copy(), "JPEG", quality=92, exif=exif)
    assert (decode(before(SOS, JUNK, turned), short_edge=None) == decode(turned, short_edge=None)).all()
    assert decode(turned, short_edge=None).shape == (64, 48, 3)


def missing_last_scan(photo: bytes) -> bytes:
    return photo[: photo.rindex(DHT, 0, photo.rindex(SOS))]


def with_byte(photo: bytes, place: int, value: int) -> bytes:
    return photo[:place] + bytes([value]) + photo[place + 1 :]


THIRD = RESTARTS.index(b"\xff\xd3")
LOST = {
    "cut in the middle": BASELINE[: len(BASELINE) // 2],
    "cut by its last byte": BASELINE[:-3],
    "cut, then ended": BASELINE[: len(BASELINE) // 2] + b"\xff\xd9",
    "cut, then zeros": BASELINE[: len(BASELINE) * 2 // 3] + bytes(len(BASELINE) // 3),
    "its last bytes are zeros": BASELINE[:-40] + bytes(40),
    "cut in the header": BASELINE[: BASELINE.index(SOS)],
    "a progressive one, cut": PROGRESSIVE[: len(PROGRESSIVE) * 2 // 3],
    "a progressive one, cut between scans": missing_last_scan(PROGRESSIVE),
    "a progressive one, cut, then ended": PROGRESSIVE[: len(PROGRESSIVE) * 2 // 3] + b"\xff\xd9",
    "a restart marker less": RESTARTS[:THIRD] + RESTARTS[THIRD + 2 :],
    "a wrong restart marker": with_byte(RESTARTS, THIRD + 1, 0xD6),
    "cmyk, cut": CMYK[: len(CMYK) // 2],
    "cmyk, subsampled, cut": CMYK_420[: len(CMYK_420) // 2],
    "of 12 bits": with_byte(BASELINE, BASELINE.index(SOF) + 4, 12),
    "lossless": with_byte(BASELINE, BASELINE.index(SOF) + 1, 0xC3),
    "tables gone": BASELINE.replace(DQT, b"\xff\xfe"),
}


@pytest.mark.parametrize("case", LOST)
def test_a_jpeg_that_lost_pixels_is_refused_in_one_line_by_build_and_loader(case: str) -> None:
    for short_edge in (None, 20):
        with pytest.raises(DecodeError) as refusal:
            decode(LOST[case], short_edge=short_edge)
        assert str(refusal.value)
        assert "\n" not in str(refusal.value)
    with pytest.raises(DecodeError) as rejection:
        to_shard_jpeg(LOST[case], size=None, quality=95)
    assert str(rejection.value) == str(refusal.value)


def test_most_scans_whose_blocks_were_lost_within_are_refused_and_never_one_that_was_only_padded() -> None:
    chance = random.Random(3)
    refused = warned = 0
    for number in range(24):
        noise = np.random.default_rng(number).normal(0, 8, (40, 56, 3))
        picture = np.clip(draw_photo(number, 40, 56) + noise, 0, 255).astype(np.uint8)
        photo = encoded(Image.fromarray(picture), "JPEG", quality=chance.randrange(70, 96))
        padded = photo[:-2] + bytes(chance.choices(range(255), k=30)) + photo[-2:]
        assert (decode(padded, short_edge=None) == decode(photo, short_edge=None)).all()
        place = chance.randrange(photo.index(SOS) + 14, len(photo) - 200)
        damaged = photo[:place] + bytes(64) + photo[place + 64 :]
        try:
            simplejpeg.decode_jpeg(damaged)
        except ValueError:
            warned += 1
            try:
                decode(damaged, short_edge=None)
            except DecodeError:
                refused += 1
    assert warned > 8
    assert refused > warned / 2


def every_format() -> dict[str, bytes]:
    """One small photo in each format that Pillow writes here."""
    kinds = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "QOI", "DDS")
    photos = {kind: encoded(IMAGE.copy(), kind) for kind in kinds}
    photos |= {kind: encoded(IMAGE.convert("RGBA"), kind) for kind in ("ICO", "ICNS")}
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"):
        photos[f"TIFF {compression}"] = encoded(IMAGE.copy(), "TIFF", compression=compression)
    photos |= {f"TIFF {fax}": encoded(IMAGE.convert("1"), "TIFF", compression=fax) for fax in ("group3", "group4")}
    for kind in ("PNG", "WEBP", "AVIF", "TIFF", "JPEG"):
        exif = Image.Exif()
        exif[0x0112] = 6
        photos[f"{kind}, turned"] = encoded(IMAGE.copy(), kind, exif=exif)
    photos |= {"PNG palette": encoded(IMAGE.quantize(99), "PNG"), "CMYK": CMYK, "progressive": PROGRESSIVE}
    return photos


def damaged(photo: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return photo[: chance.randrange(len(photo))]
    content = bytearray(photo)
    reach = len(photo) if chance.random() < 0.5 else min(len(photo), 400)
    for _ in range(chance.choice((1, 3, 10))):
        content[chance.randrange(reach)] = chance.randrange(256)
    return bytes(content)


def test_whatever_a_decoder_raises_is_the_photos_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(14)
    causes, reasons = set(), []
    for photo in every_format().values():
        decode(photo, short_edge=None)
        for _ in range(25):
            content = damaged(photo, chance)
            try:
                decode(content, short_edge=32)
            except DecodeError as error:
                causes.add(type(error.__cause__))
                reasons.append(str(error))
                with pytest.raises(DecodeError):
                    to_shard_jpeg(content, size=None, quality=95)
    assert all(reason and "\n" not in reason for reason in reasons)
    assert len(causes) > 4
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


SIZES = {
    "tall": encoded(Image.new("RGB", (1, 65_500)), "JPEG"),
    "wide": encoded(Image.new("RGB", (65_500, 1)), "JPEG"),
    "tall png": encoded(Image.new("L", (2, 65_500)), "PNG"),
    "wide tiff": encoded(Image.new("L", (30_000, 3)), "TIFF"),
    "huge png": encoded(Image.new("1", (16, 16)), "PNG").replace(
        (16).to_bytes(4) + (16).to_bytes(4), (50_000).to_bytes(4) * 2
    ),
    "huge gif": encoded(Image.new("P", (16, 16)), "GIF").replace(b"GIF87a\x10\0\x10\0", b"GIF87a\xff\xff\xff\xff"),
    "huge bmp": encoded(Image.new("L", (16, 16)), "BMP").replace(
        (16).to_bytes(4, "little") * 2, (60_000).to_bytes(4, "little") * 2, 1
    ),
    "huge ppm": b"P6 60000 60000 255\n",
    "empty ppm": b"P6 0 10 255\n",
}


@pytest.mark.parametrize("case", SIZES)
def test_a_size_that_would_fill_the_memory_is_refused_before_decoding_by_build_and_loader(case: str) -> None:
    for short_edge in (None, 64):
        with pytest.raises(DecodeError):
            decode(SIZES[case], short_edge=short_edge)
    for size in (None, 64):
        with pytest.raises(DecodeError):
            to_shard_jpeg(SIZES[case], size=size, quality=95)


def test_a_bomb_takes_no_memory_and_a_bad_header_prints_nothing(tmp_path: Path) -> None:
    malformed = encoded(IMAGE.copy(), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0")
    for name, photo in {**SIZES, "malformed": malformed, "cut": encoded(IMAGE.copy(), "TIFF")[:99]}.items():
        (tmp_path / name).write_bytes(photo)
    program = f"""
{PEAK}
import pathlib, resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from glci_dist.data.decode import DecodeError, decode
before = peak_mib()
for path in sorted(pathlib.Path({str(tmp_path)!r}).iterdir()):
    try:
        decode(path.read_bytes(), short_edge=64)
    except DecodeError:
        pass
print(peak_mib() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100  # MiB
    assert done.stderr == ""


def test_the_thinnest_and_the_smallest_photos_still_pass() -> None:
    for width, height in ((100, 1), (1, 100), (1, 1), (2, 150)):
        photo = encoded(Image.new("RGB", (width, height), "red"), "PNG")
        assert min(decode(photo, short_edge=16).shape[:2]) == 16
        assert simplejpeg.decode_jpeg(to_shard_jpeg(photo, size=None, quality=95)).shape == (height, width, 3)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC"),
        (b"\n<!DOCTYPE html><html>not found</html>", "web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "no photo"),
        (b"", "empty file"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(99), "a video"),
        (b"\0\0\0\x14ftypqt  " + bytes(99), "a video"),
        (b"%PDF-1.7\n%\xe2\xe3" + bytes(99), "a PDF file, no photo"),
        (b"\x1f\x8b\x08" + bytes(99), "a gzip file, no photo"),
        (b"PK\x03\x04" + bytes(99), "a zip file, no photo"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a pointer of git-lfs .*, no photo"),
        (b"no such file", "no photo in a known format"),
        (bytes(99), "no photo in a known format"),
    ],
    ids=[
        *("a phone's", "a failed download", "a program", "nothing", "mp4", "mov", "pdf", "gzip", "zip", "git-lfs"),
        *("text", "zeros"),
    ],
)
def test_what_is_no_photo_that_is_read_here_is_refused_by_its_name(content: bytes, name: str) -> None:
    with pytest.raises(DecodeError, match=name):
        decode(content, short_edge=None)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """An indexed tar of others with two good photos and three that the loader refuses."""
    photos = {
        "a.jpg": jpeg(1),
        "b.jpg": broken_avif(),
        "c.jpg": LOST["cut in the middle"],
        "d.png": SIZES["tall"],
        "e.jpg": HARMLESS["junk before the scan"][0],
    }
    (tmp_path / "theirs").mkdir()
    write_tar(tmp_path / "theirs" / "x.tar", photos)
    assert glci("shards", "index", tmp_path / "theirs", "--processes", 1) == 0
    return tmp_path / "theirs"


def test_a_broken_avif_is_named_by_the_build_like_any_other_photo(tmp_path: Path) -> None:
    photos = {"good.jpg": jpeg(1), "bad.jpg": broken_avif(), "junk.jpg": HARMLESS["junk before the tables"][0]}
    source = write_folder(tmp_path / "photos", photos)
    assert glci("shards", "build", source, tmp_path / "s", "--processes", 1) == 0
    (line,) = (tmp_path / "s" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "bad.jpg"
    assert json.loads(line)["reason"]
    with tarfile.open(tmp_path / "s" / "shard-000000.tar") as archive:
        assert sorted(archive.getnames()) == ["good.jpg", "junk.jpg"]


def test_verify_names_just_the_photos_that_the_loader_refuses(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert glci("shards", "verify", theirs, "--processes", 2) == 2
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split(" cannot be decoded: ")[0] for line in lines] == ["x.tar/b", "x.tar/c", "x.tar/d"]
    assert captured.err.startswith("glci: error: 3 photos")
    assert "x.tar/b" in captured.err
    assert captured.err.count("\n") == 1
    assert glci("shards", "verify", theirs, "--quick") == 0


def test_show_crosses_out_and_names_just_the_photos_that_the_loader_refuses(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert glci("shards", "show", theirs, "--out", tmp_path / "sheet.png") == 0
    out = capsys.readouterr().out
    assert "3 not decodable" in out
    for key in "bcd":
        assert f"x.tar/{key} cannot be decoded: " in out
    assert "x.tar/a" not in out
    assert "x.tar/e" not in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    centres = [tuple(sheet[4 + 64 + 132 * row, 4 + 64 + 132 * column]) for row in (0, 1) for column in (0, 1, 2)]
    assert [centre == (255, 0, 0) for centre in centres[:5]] == [False, True, True, True, False]


def test_show_turns_a_photo_upright_as_training_does(tmp_path: Path) -> None:
    upright = np.zeros((128, 128, 3), np.uint8)
    upright[:64] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    write_tar(tmp_path / "x.tar", {"a.png": encoded(Image.fromarray(upright[::-1].copy()), "PNG", exif=exif)})
    assert glci("shards", "index", tmp_path, "--processes", 1) == 0
    assert glci("shards", "show", tmp_path, "--out", tmp_path / "sheet.png") == 0
    assert (np.asarray(Image.open(tmp_path / "sheet.png"))[4:132, 4:132] == upright).all()


def test_a_mended_photo_is_stored_whole_and_clean(tmp_path: Path) -> None:
    flawed = HARMLESS["junk in every place"][0]
    kept = to_shard_jpeg(flawed, size=None, quality=95)
    assert (np.asarray(Image.open(io.BytesIO(kept))) == np.asarray(Image.open(io.BytesIO(BASELINE)))).all()
    assert to_shard_jpeg(kept, size=None, quality=95) == kept


def test_a_libtiff_that_cannot_be_silenced_is_no_photos_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise OSError("no such library")

    other_formats._formats.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", refuse)
    written = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(written, "PNG")
    assert decode(written.getvalue(), short_edge=None).tolist() == [[[255, 0, 0]] * 8] * 8
    other_formats._formats.cache_clear()
