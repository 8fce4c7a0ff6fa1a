"""A photo that makes its decoder fail in an unusual way is one more replaced sample of a run, named in its journal."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.data.shards_help import broken_avif, encoded, glci, jpeg, write_tar
from tests.small_run import events, small, train_to_its_end
from tests.worlds import run_world

pytestmark = pytest.mark.distributed


def test_a_run_goes_on_past_a_broken_avif_and_a_bomb_and_an_evaluation_names_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = {f"{number:02d}.jpg": jpeg(number) for number in range(14)}
    shards = tmp_path / "theirs"
    shards.mkdir()
    tall = encoded(Image.new("RGB", (1, 65_500)), "JPEG")
    write_tar(shards / "x.tar", {**photos, "avif.jpg": broken_avif(), "tall.jpg": tall})
    assert glci("shards", "index", shards, "--processes", 1) == 0

    # Four steps of four slots are one epoch: each photo is met once; the colour and the pictures meet them too.
    extra = ("data.workers=1", "data.mean_colour=null", "data.tolerance=0.5", "monitor.pictures_every=4")
    assert run_world(1, train_to_its_end, small(shards, tmp_path, steps=(2, 1, 1), extra=extra)) == [""]
    replaced = events(tmp_path, "replaced")
    # The second once more, as it is the first that is tried in the place of the one before it.
    assert sorted(entry["key"] for entry in replaced) == ["avif", "tall", "tall"]
    assert all(entry["reason"] for entry in replaced)

    capsys.readouterr()
    assert glci("evaluate", tmp_path / "run", "--data", shards) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("glci: error: x.tar/avif cannot be decoded")
