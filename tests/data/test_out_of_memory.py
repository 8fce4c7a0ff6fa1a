"""Where memory is short no photo is at fault: it is neither replaced nor rejected, and one line names the way out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.shards_help import encoded, glci, write_folder, write_tar

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), dtype=np.uint8))
FORMATS = {
    "jpeg": encoded(PHOTO.copy(), "JPEG"),
    "jpeg, no end": encoded(PHOTO.copy(), "JPEG")[:-2],
    "jpeg, progressive": encoded(PHOTO.copy(), "JPEG", progressive=True),
    "jpeg, cmyk": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "png": encoded(PHOTO.copy(), "PNG", compress_level=1),
    "webp": encoded(PHOTO.copy(), "WEBP", lossless=True, quality=0, method=0),
    "avif": encoded(PHOTO.copy(), "AVIF", speed=10),
    "tiff": encoded(PHOTO.copy(), "TIFF", compression="zstd"),
    "gif": encoded(PHOTO.quantize(64), "GIF"),
    "bmp": encoded(PHOTO.copy(), "BMP"),
    "jpeg 2000": encoded(PHOTO.copy(), "JPEG2000"),
}
_START = """
import os, resource, sys, threading
from pathlib import Path
import glci_dist.data.build, glci_dist.data.verify
from glci_dist.cli import main
from glci_dist.data.decode import DecodeError, decode
from glci_dist.data.other_formats import _formats
_formats()
threading.stack_size(1 << 17)  # else a thread takes more than what the limits leave

def limit(mebibytes):
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (mebibytes << 20),) * 2)
"""


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, after ``_START``."""
    command = [sys.executable, "-c", _START + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_every_decoders_want_of_memory_is_told_from_a_damaged_photo(tmp_path: Path) -> None:
    write_folder(tmp_path, FORMATS)
    program = """
for path in sorted(Path(sys.argv[1]).iterdir()):
    photo = path.read_bytes()
    for mebibytes in (1, 3, 6, 9, 12, 16, 20, 24, 30, 40, 50, 1000):
        if os.fork() == 0:
            limit(mebibytes)
            try:
                decode(photo, short_edge=None)
                outcome = "decoded"
            except MemoryError:
                outcome = "out of memory"
            except DecodeError as error:
                outcome = f"the photo's: {error}"
            os.write(1, f"{path.name}\\t{mebibytes}\\t{outcome}\\n".encode())
            os._exit(0)
        os.wait()
"""
    done = run(program, tmp_path)
    found = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(found) == 12 * len(FORMATS), done.stderr
    assert [line for line in found if line[2] not in ("decoded", "out of memory")] == []
    assert {name for name, *rest in found if rest == ["1", "out of memory"]} == set(FORMATS)
    assert {name for name, *rest in found if rest == ["1000", "decoded"]} == set(FORMATS)


@pytest.mark.parametrize("kind", ["jpeg", "jpeg 2000"])
def test_build_and_verify_end_in_one_line_that_names_the_photo_and_the_build_can_be_completed(
    tmp_path: Path, kind: str
) -> None:
    source = write_folder(tmp_path / "photos", {"face.jpg": FORMATS[kind]})
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_tar(theirs / "a.tar", {"face.jpg": FORMATS[kind]})
    assert glci("shards", "index", theirs, "--processes", 1) == 0
    build = ["shards", "build", source, tmp_path / "s", "--processes", 1]
    for command in (build, ["shards", "verify", theirs, "--processes", 1]):
        done = run("limit(5)\nsys.exit(main(sys.argv[1:]))", *command)
        assert done.returncode == 1, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("glci")]
        assert line.startswith("glci: fault: out of memory at ")
        assert "face" in line
        assert "--processes" in line
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "s" / "rejects.jsonl").exists()
    assert glci(*build) == 0
    assert json.loads((tmp_path / "s" / "index.json").read_text())["total"] == 1


def test_training_ends_in_one_line_with_the_way_out_and_puts_no_other_photo_in_the_place(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{number}.jpg": FORMATS["jpeg 2000"] for number in range(4)})
    assert glci("shards", "index", tmp_path, "--processes", 1) == 0
    program = """
from glci_dist.config import DataConfig, HolesConfig, OrderConfig
from glci_dist.data.index import load_index
from glci_dist.data.loader import make_loader
from glci_dist.errors import Fault
data = DataConfig(shards=sys.argv[1], size=40, short_edge=[40, 40], workers=0, order=OrderConfig(lanes=1))
holes = HolesConfig(min_side=4, max_side=8, patch=8)
loader = make_loader(load_index(sys.argv[1]), data, holes, seed=0, global_batch=4, rank=0, world_size=1, steps=[0, 1])
batches = iter(loader)
assert next(batches).replaced == ()
limit(6)
try:
    print(next(batches).replaced)
except Fault as fault:
    print(fault)
"""
    done = run(program, tmp_path)
    assert done.stdout.startswith("the batch of step 1 cannot be made: MemoryError: "), done.stdout + done.stderr
    assert "fewer data.workers" in done.stdout
    assert done.stdout.count("\n") == 1
