"""Whatever a photo's format, mode, depth and orientation: the build and the loader see the same upright picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glci_dist.config import DataConfig, HolesConfig, OrderConfig
from glci_dist.data.decode import DecodeError, decode
from glci_dist.data.index import load_index
from glci_dist.data.loader import StepDataset
from glci_dist.data.shard_jpeg import to_shard_jpeg
from tests.data import shards_help
from tests.data.conftest import draw_photo
from tests.data.shards_help import TURNS, glci, write_folder, write_tar

SIDE = 40
PICTURE = draw_photo(7, SIDE, SIDE)
IMAGE = Image.fromarray(PICTURE)
GREY = np.asarray(IMAGE.convert("L"))
ALPHA = np.where(np.arange(SIDE) < 13, 0, np.where(np.arange(SIDE) < 26, 128, 255)) + np.zeros((SIDE, 1), int)
OTHER = Image.fromarray(np.ascontiguousarray(255 - PICTURE))
PALETTE = IMAGE.quantize(200)


# Pytest lets every warning through, also those that a command would not show.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    # A copy, because Pillow leaves the settings of one format's encoder on the image for the next.
    return shards_help.encoded(image.copy(), kind, **options)


def on_white(picture: np.ndarray, alpha: np.ndarray = ALPHA) -> np.ndarray:
    weight = alpha[:, :, np.newaxis] / 255
    return picture * weight + 255 * (1 - weight)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, np.newaxis], 3, axis=2)


def with_alpha(image: Image.Image) -> Image.Image:
    layered = image.copy()
    layered.putalpha(Image.fromarray(ALPHA.astype(np.uint8)))
    return layered


def deep(dtype: str = "<u2", factor: int = 257) -> Image.Image:
    return Image.fromarray((GREY.astype(np.uint16) * factor).astype(dtype))


def raw_tiff(values: np.ndarray, **options: object) -> bytes:
    """A TIFF of what Pillow does not write."""
    buffer = io.BytesIO()
    pytest.importorskip("tifffile").imwrite(buffer, values, **options)
    return buffer.getvalue()


def two_frames(kind: str, **options: object) -> bytes:
    return encoded(IMAGE, kind, save_all=True, append_images=[OTHER.copy()], **options)


def transparent_colour(image: Image.Image) -> tuple[bytes, np.ndarray]:
    """A PNG in which one value of the picture stands for transparency, and what it shows."""
    values = np.asarray(image)
    clear = values[20, 20]
    shown = values if values.ndim == 3 else grey(values)
    shown = np.where((shown == clear).all(-1, keepdims=True), 255, shown)
    transparency = tuple(clear.tolist()) if values.ndim == 3 else int(clear)
    return encoded(image, "PNG", transparency=transparency), shown


CASES: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
    "png rgb": lambda: (encoded(IMAGE, "PNG"), PICTURE),
    "png rgba": lambda: (encoded(with_alpha(IMAGE), "PNG"), on_white(PICTURE)),
    "png la": lambda: (encoded(with_alpha(IMAGE.convert("L")), "PNG"), on_white(grey(GREY))),
    "png 1": lambda: (encoded(IMAGE.convert("1"), "PNG"), np.asarray(IMAGE.convert("1").convert("RGB"))),
    "png 4 bits": lambda: (
        encoded(IMAGE.quantize(9), "PNG", bits=4),
        np.asarray(IMAGE.quantize(9).convert("RGB")),
    ),
    "png palette": lambda: (encoded(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB"))),
    "png palette, transparent": lambda: (
        encoded(PALETTE, "PNG", transparency=bytes(range(200))),
        on_white(np.asarray(PALETTE.convert("RGB")), np.asarray(PALETTE).astype(int)),
    ),
    "png rgb, a transparent colour": lambda: transparent_colour(IMAGE),
    "png grey, a transparent level": lambda: transparent_colour(Image.fromarray(GREY)),
    "png 16 bits": lambda: (encoded(deep(), "PNG"), grey(GREY)),
    "png 16 bits, dark": lambda: (encoded(deep(factor=64), "PNG"), grey(GREY // 4)),
    "pgm 16 bits": lambda: (
        b"P5 %d %d 65535\n" % (SIDE, SIDE) + np.asarray(deep()).astype(">u2").tobytes(),
        grey(GREY),
    ),
    "tiff 16 bits": lambda: (encoded(deep(), "TIFF"), grey(GREY)),
    "tiff 16 bits, lzw": lambda: (encoded(deep(), "TIFF", compression="tiff_lzw"), grey(GREY)),
    "tiff 16 bits, big endian": lambda: (raw_tiff(np.asarray(deep()), byteorder=">"), grey(GREY)),
    "tiff rgb of 16 bits": lambda: (raw_tiff(PICTURE.astype(np.uint16) * 257, photometric="rgb"), PICTURE),
    "jpeg 2000 16 bits": lambda: (encoded(deep(), "JPEG2000"), grey(GREY)),
    "tiff": lambda: (encoded(IMAGE, "TIFF"), PICTURE),
    "tiff deflate": lambda: (encoded(IMAGE, "TIFF", compression="tiff_adobe_deflate"), PICTURE),
    "tiff rgba": lambda: (encoded(with_alpha(IMAGE), "TIFF"), on_white(PICTURE)),
    "tiff fax": lambda: (
        encoded(IMAGE.convert("1"), "TIFF", compression="group4"),
        np.asarray(IMAGE.convert("1").convert("RGB")),
    ),
    "tiff cmyk": lambda: (encoded(IMAGE.convert("CMYK"), "TIFF"), PICTURE),
    "tiff ycbcr": lambda: (encoded(IMAGE.convert("YCbCr"), "TIFF", compression="jpeg", quality=99), PICTURE),
    "webp": lambda: (encoded(IMAGE, "WEBP", lossless=True), PICTURE),
    "webp rgba": lambda: (encoded(with_alpha(IMAGE), "WEBP", lossless=True, exact=True), on_white(PICTURE)),
    "avif": lambda: (encoded(IMAGE, "AVIF", quality=100, subsampling="4:4:4"), PICTURE),
    "avif rgba": lambda: (encoded(with_alpha(IMAGE), "AVIF", quality=100, subsampling="4:4:4"), on_white(PICTURE)),
    "jpeg 2000": lambda: (encoded(IMAGE, "JPEG2000"), PICTURE),
    "bmp": lambda: (encoded(IMAGE, "BMP"), PICTURE),
    "tga": lambda: (encoded(IMAGE, "TGA"), PICTURE),
    "gif": lambda: (encoded(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))),
    "jpeg": lambda: (encoded(IMAGE, "JPEG", quality=99, subsampling=0), PICTURE),
    "jpeg, progressive": lambda: (encoded(IMAGE, "JPEG", quality=99, subsampling=0, progressive=True), PICTURE),
    "jpeg grey": lambda: (encoded(IMAGE.convert("L"), "JPEG", quality=99), grey(GREY)),
    "jpeg cmyk": lambda: (encoded(IMAGE.convert("CMYK"), "JPEG", quality=99), PICTURE),
    # libjpeg-turbo's own interface does not know this sampling: Pillow decodes it.
    "jpeg cmyk, subsampled": lambda: (encoded(IMAGE.convert("CMYK"), "JPEG", quality=99, subsampling=2), PICTURE),
    "jpeg of rgb, Adobe's": lambda: (encoded(IMAGE, "JPEG", quality=99, keep_rgb=True), PICTURE),
    "two frames: gif": lambda: (
        two_frames("GIF"),
        np.asarray(Image.open(io.BytesIO(two_frames("GIF"))).convert("RGB")),
    ),
    "two frames: png": lambda: (two_frames("PNG"), PICTURE),
    "two frames: webp": lambda: (two_frames("WEBP", lossless=True), PICTURE),
    "two frames: tiff": lambda: (two_frames("TIFF"), PICTURE),
    "two frames: avif": lambda: (two_frames("AVIF", quality=100, subsampling="4:4:4"), PICTURE),
    "two frames: mpo": lambda: (two_frames("MPO", quality=99, subsampling=0), PICTURE),
}


def built(photo: bytes) -> np.ndarray:
    """What the build makes of a photo, as the loader sees it."""
    return decode(to_shard_jpeg(photo, size=None, quality=100), short_edge=None)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found.astype(float) - expected).mean())


@pytest.mark.parametrize("case", CASES)
def test_build_and_loader_see_the_same_picture_in_every_format_mode_and_depth(case: str) -> None:
    photo, expected = CASES[case]()
    assert distance(decode(photo, short_edge=None), expected) < 1.5
    assert distance(built(photo), expected) < 2


OBLONG = draw_photo(8, 30, 42)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x010F] = "a maker"
    found[0x0112] = orientation
    return found


def xmp(orientation: int) -> bytes:
    return b'<x:xmpmeta xmlns:tiff="t"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


ORIENTED: dict[str, Callable[[Image.Image, int], bytes]] = {
    "jpeg": lambda image, turn: encoded(image, "JPEG", quality=99, subsampling=0, exif=exif(turn)),
    "jpeg, big endian": lambda image, turn: encoded(
        image,
        "JPEG",
        quality=99,
        subsampling=0,
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0%c\0\0\0\0\0\0" % turn,
    ),
    "jpeg, xmp alone": lambda image, turn: encoded(image, "JPEG", quality=99, subsampling=0, xmp=xmp(turn)),
    "jpeg, exif and xmp": lambda image, turn: encoded(
        image, "JPEG", quality=99, subsampling=0, exif=exif(turn), xmp=xmp(3)
    ),
    "jpeg, grey": lambda image, turn: encoded(image.convert("L"), "JPEG", quality=99, exif=exif(turn)),
    "jpeg, cmyk": lambda image, turn: encoded(image.convert("CMYK"), "JPEG", quality=99, exif=exif(turn)),
    "tiff": lambda image, turn: encoded(image, "TIFF", exif=exif(turn)),
    "tiff, lzw": lambda image, turn: encoded(image, "TIFF", exif=exif(turn), compression="tiff_lzw"),
    "tiff, exif and xmp": lambda image, turn: encoded(image, "TIFF", exif=exif(turn), tiffinfo={700: xmp(turn)}),
    "png": lambda image, turn: encoded(image, "PNG", exif=exif(turn)),
    "webp": lambda image, turn: encoded(image, "WEBP", lossless=True, exif=exif(turn)),
    "avif": lambda image, turn: encoded(image, "AVIF", quality=100, subsampling="4:4:4", exif=exif(turn)),
}


@pytest.mark.parametrize("kind", ORIENTED)
def test_an_orientation_is_applied_just_once_by_build_and_loader(kind: str) -> None:
    expected = grey(np.asarray(Image.fromarray(OBLONG).convert("L"))) if "grey" in kind else OBLONG
    for turn, stored in TURNS.items():
        photo = ORIENTED[kind](Image.fromarray(np.ascontiguousarray(stored(OBLONG))), turn)
        assert distance(decode(photo, short_edge=None), expected) < 1.5, turn
        assert distance(built(photo), expected) < 2, turn
        small = decode(photo, short_edge=15)
        assert small.flags.c_contiguous
        assert distance(small, np.asarray(Image.fromarray(expected).resize((21, 15), Image.Resampling.BOX))) < 2, turn


@pytest.mark.parametrize("turn", [2, 5])
def test_a_turned_photo_leaves_the_buffers_shape_and_content_right(turn: int) -> None:
    photo = encoded(Image.fromarray(np.ascontiguousarray(TURNS[turn](PICTURE))), "JPEG", quality=99, exif=exif(turn))
    target, scratch = np.zeros(PICTURE.shape, np.uint8), np.zeros(10**5, np.uint8)
    found = decode(photo, short_edge=SIDE, target=target, scratch=scratch)
    assert found is not target
    assert distance(found, PICTURE) < 4


MALFORMED_EXIF = {
    "nothing": b"",
    "no tiff": b"no tiff at all",
    "cut": b"II*\0",
    "beyond its end": b"II*\0\xff\xff\xff\xff",
    "too many entries": b"MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03",
    "orientation 0": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0",
    "orientation 9": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0",
    "orientation of text": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02ab\0\0\0\0\0\0",
    "orientation of many": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\0\0\0\0\0\0\0",
    "a directory in itself": b"MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\x08",
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_malformed_exif_leaves_the_photo_as_it_is_stored(kind: str) -> None:
    for name, content in MALFORMED_EXIF.items():
        photo = encoded(IMAGE, kind, lossless=True, quality=99, exif=b"Exif\0\0" + content)
        assert distance(decode(photo, short_edge=None), PICTURE) < 4, name
        assert distance(built(photo), PICTURE) < 4, name


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_range_are_refused_by_both_with_one_reason(mode: str) -> None:
    photo = encoded(IMAGE.convert("L").convert(mode), "TIFF")
    with pytest.raises(DecodeError, match="range is not known") as refusal:
        decode(photo, short_edge=20)
    with pytest.raises(DecodeError) as rejection:
        to_shard_jpeg(photo, size=None, quality=95)
    assert str(rejection.value) == str(refusal.value)


def test_a_large_layered_photo_is_composed_in_strips_as_it_is_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = ["png rgba", "png palette, transparent", "png 16 bits", "gif"]
    whole = {case: decode(CASES[case]()[0], short_edge=None) for case in cases}
    monkeypatch.setattr("glci_dist.data.other_formats._STRIP_PIXELS", 3 * SIDE + 1)
    for case in cases:
        assert (decode(CASES[case]()[0], short_edge=None) == whole[case]).all(), case


def test_shards_of_others_train_on_the_pixels_that_the_build_would_have_made(tmp_path: Path) -> None:
    photos = {f"{number:03d}": make()[0] for number, make in enumerate(CASES.values())}
    for turn in TURNS:
        image = Image.fromarray(np.ascontiguousarray(TURNS[turn](PICTURE)))
        photos |= {f"{kind} {turn}": make(image, turn) for kind, make in ORIENTED.items()}
    # The content decides what a photo is, not its name.
    write_folder(tmp_path / "photos", {f"{key}.jpg": photo for key, photo in photos.items()})
    (tmp_path / "theirs").mkdir()
    write_tar(tmp_path / "theirs" / "a.tar", {f"{key}.jpg": photo for key, photo in photos.items()})
    assert glci("shards", "build", tmp_path / "photos", tmp_path / "ours", "--quality", 100, "--processes", 1) == 0
    assert glci("shards", "index", tmp_path / "theirs", "--processes", 1) == 0
    assert not (tmp_path / "ours" / "rejects.jsonl").exists()
    assert glci("shards", "verify", tmp_path / "theirs", "--processes", 1) == 0

    def stream(folder: Path) -> dict[str, np.ndarray]:
        index = load_index(str(folder))
        order = OrderConfig(lanes=1)
        data = DataConfig(shards=str(folder), size=SIDE, short_edge=[SIDE, SIDE], flip=False, order=order)
        holes = HolesConfig(min_side=4, max_side=8, patch=8)
        (batch,) = [
            StepDataset(index, data, holes, seed=0, global_batch=index.total, slots=range(index.total))[0],
        ]
        assert batch.replaced == ()
        return {key.rpartition("/")[2]: photo.numpy() for key, photo in zip(batch.keys, batch.photos, strict=True)}

    ours, theirs = stream(tmp_path / "ours"), stream(tmp_path / "theirs")
    assert set(ours) == set(theirs) == set(photos)
    for key, photo in theirs.items():
        assert distance(ours[key], photo) < 1.5, key
