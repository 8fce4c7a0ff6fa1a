"""A file under a photo's name may be of any size: what is no photo, or too large for one, is never read whole."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from glci_dist.data.index import load_index
from tests.data.shards_help import PEAK, glci, jpeg
from tests.data.test_shards_build import read_samples
from tests.data.test_shards_sources import build, rejects

LARGE = 300 << 20
MEASURED_BUILD = f"""
{PEAK}
import resource, sys
from glci_dist.cli import main
code = main(["shards", "build", *sys.argv[1:], "--processes", "1"])
print("peak", max(peak_mib(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024))
sys.exit(code)
"""


def holds(path: Path, size: int, start: bytes = b"") -> Path:
    """A source of two photos by name: one of ``size`` bytes, ``start`` and then zeros, and one that is good."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("large.jpg", "w", force_zip64=True) as file:
                file.write(start)
                for _ in range(size >> 20):
                    file.write(bytes(1 << 20))
            archive.writestr("good.jpg", jpeg(1))
    elif path.suffix == ".tar":
        header = tarfile.TarInfo("large.jpg")
        header.size = size
        with open(path, "wb") as file:  # with a hole in the place of the zeros
            file.write(header.tobuf() + start)
            file.seek(512 + size)
            with tarfile.open(fileobj=file, mode="w") as archive:
                good = tarfile.TarInfo("good.jpg")
                good.size = len(jpeg(1))
                archive.offset = file.tell()
                archive.addfile(good, io.BytesIO(jpeg(1)))
    else:
        path.mkdir()
        (path / "good.jpg").write_bytes(jpeg(1))
        (path / "large.jpg").write_bytes(start)
        os.truncate(path / "large.jpg", size)
    return path


@pytest.mark.parametrize("name", ["photos", "photos.zip", "photos.tar"])
def test_what_is_no_photo_by_its_first_bytes_is_not_read(tmp_path: Path, name: str) -> None:
    source = holds(tmp_path / name, LARGE)
    command = [sys.executable, "-c", MEASURED_BUILD, str(source), str(tmp_path / "s")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "found 2 photos: 1 built, 1 rejected" in ran.stdout
    assert rejects(tmp_path / "s") == {"large.jpg": "no photo in a known format"}
    assert int(ran.stdout.rpartition("peak ")[2]) < LARGE >> 20


@pytest.mark.parametrize("name", ["photos", "photos.tar"])
def test_more_bytes_than_the_largest_photo_has_are_refused_with_both_figures(tmp_path: Path, name: str) -> None:
    source = holds(tmp_path / name, 513 << 20, jpeg(2))
    assert build(source, tmp_path / "s") == 0
    (reason,) = rejects(tmp_path / "s").values()
    assert f"{513 << 20:,} bytes" in reason
    assert f"{512 << 20:,}" in reason
    assert len(read_samples(tmp_path / "s")) == 1
    if source.suffix == ".tar":
        assert glci("shards", "index", tmp_path, "--processes", 1) == 0
        (reason,) = rejects(tmp_path, "index-rejects.jsonl").values()
        assert f"{512 << 20:,}" in reason
        assert load_index(str(tmp_path)).total == 1
