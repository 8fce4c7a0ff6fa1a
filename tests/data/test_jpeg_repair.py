"""A flawed JPEG costs little more than a sound one, and what was found of it changes nothing that is decoded."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from glci_dist.data import jpeg_repair
from glci_dist.data.decode import DecodeError, decode
from tests.data.conftest import draw_photo
from tests.data.shards_help import encoded

NOISE = np.random.default_rng(4).normal(0, 6, (600, 900, 3))
PHOTO = Image.fromarray(np.clip(draw_photo(4, 600, 900) + NOISE, 0, 255).astype(np.uint8))
SOUND = encoded(PHOTO.copy(), "JPEG", quality=90)
FLAWED = {
    "junk before the tables": SOUND[:2] + b"junk" + SOUND[2:],
    "junk before the end": SOUND[:-2] + b"junk \0\x01\x02" * 5 + SOUND[-2:],
    "no end": SOUND[:-2],
}
CUT = SOUND[: len(SOUND) // 2]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_repair, "_known", {})


@pytest.fixture
def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the height of each picture that the strict decoder is asked for, 1 for the smallest that it has."""
    asked: list[int] = []
    strict = simplejpeg.decode_jpeg

    def counted(photo: bytes, **options: int) -> np.ndarray:
        asked.append(options["min_height"])
        return strict(photo, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    return asked


@pytest.mark.parametrize("flaw", FLAWED)
def test_a_flawed_jpeg_is_decoded_eight_times_at_most_and_twice_from_then_on(
    flaw: str, decoded_sizes: list[int]
) -> None:
    first = decode(FLAWED[flaw], short_edge=64)
    assert len(decoded_sizes) <= 8
    assert set(decoded_sizes) <= {1, 64}  # none of them whole
    decoded_sizes.clear()
    assert (decode(FLAWED[flaw], short_edge=64) == first).all()
    assert decoded_sizes in ([64], [64, 64])  # a flaw in the header is seen before any pixel is decoded
    decoded_sizes.clear()
    assert (decode(SOUND, short_edge=64) == first).all()
    assert decoded_sizes == [64]


def test_a_damaged_jpeg_is_refused_for_the_same_reason_when_it_is_known(decoded_sizes: list[int]) -> None:
    reasons = set()
    for _ in range(2):
        with pytest.raises(DecodeError) as refusal:
            decode(CUT, short_edge=64)
        reasons.add(str(refusal.value))
    assert len(reasons) == 1
    decoded_sizes.clear()
    with pytest.raises(DecodeError):
        decode(CUT, short_edge=64)
    assert decoded_sizes == [64]


def test_what_is_known_of_photos_is_bounded_and_forgetting_changes_no_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_repair, "_MOST_KNOWN", 2)
    photos = [*FLAWED.values(), FLAWED["no end"]]
    for _ in range(2):
        for photo in photos:
            assert (decode(photo, short_edge=64) == decode(SOUND, short_edge=64)).all()
            assert len(jpeg_repair._known) <= 2


def test_restart_markers_without_an_end_lose_nothing_in_any_mode() -> None:
    for number in range(40):
        picture = np.clip(draw_photo(number, 90, 70) + NOISE[:90, :70], 0, 255).astype(np.uint8)
        options = {"quality": 40 + number, "restart_marker_blocks": 3, "progressive": number % 2 > 0}
        sound = encoded(Image.fromarray(picture), "JPEG", **options)
        assert (decode(sound[:-2], short_edge=None) == decode(sound, short_edge=None)).all(), number
