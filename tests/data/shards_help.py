"""Photos, sources and a command line for the tests of `glci shards`."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from glci_dist.cli import main

TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}
"""From an upright picture to how it is stored under each orientation."""

PEAK = r"""
import re

def peak_mib():
    # Not getrusage: its peak begins at that of the process which started this one.
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) // 1024
"""
"""For a program that a test runs: the most memory that it had so far."""


def pixels(number: int, *, width: int = 48, height: int = 40) -> np.ndarray:
    """A smooth colour gradient that differs with ``number``, uint8 (height, width, 3)."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = [x * 200 + number % 50, y * 200 + number // 50, (1 - x) * 150 + number % 7]
    return np.stack(channels, axis=-1).astype(np.uint8)


def jpeg(number: int, *, width: int = 48, height: int = 40) -> bytes:
    """``pixels`` as a JPEG."""
    return simplejpeg.encode_jpeg(pixels(number, width=width, height=height), quality=90)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """A Pillow image in a file format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def broken_avif() -> bytes:
    """An AVIF that opens and whose picture does not decode: Pillow raises RuntimeError."""
    whole = encoded(Image.fromarray(pixels(1)), "AVIF")
    start = whole.index(b"mdat") + 4
    return whole[:start] + b"\xa5" * (len(whole) - start)


def some_photos(count: int) -> dict[str, bytes]:
    """JPEGs in two folders, named as a user might."""
    return {f"{'train' if number % 2 else 'more'}/face {number:03d}.jpg": jpeg(number) for number in range(count)}


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    """The files below ``path``."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """The files as a zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], *, form: int = tarfile.PAX_FORMAT) -> Path:
    """The files as a tar, compressed where its name says .gz, in a given order and format."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=form) as archive:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """What readers of a shards folder see of it: the shards, their tables, the index."""
    names = [path for path in folder.iterdir() if path.suffix in (".tar", ".npy") or path.name == "index.json"]
    return {path.name: path.read_bytes() for path in names}


def glci(*arguments: object) -> int:
    """Run `glci` with these arguments: its exit code."""
    return main([str(argument) for argument in arguments])
