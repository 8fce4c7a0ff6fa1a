"""A buffer is a safetensors file: what is copied into it is what the library reads from the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from glci_dist.checkpoints.manifest import checksum
from glci_dist.checkpoints.safetensors_buffer import SafetensorsBuffer, layout_of

TENSORS: dict[str, list[Tensor]] = {
    "weight": [torch.randn(3, 5, 2)],
    "vector": [torch.randn(7), torch.randn(2, 3), torch.randn(0)],
    "count": [torch.tensor(41)],
    "half": [torch.randn(9).bfloat16()],
    "empty": [torch.zeros(0)],
    "channels last": [torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)],
}


def filled(tensors: dict[str, list[Tensor]]) -> SafetensorsBuffer:
    buffer = SafetensorsBuffer(layout_of(tensors), pinned=False)
    for name, pieces in tensors.items():
        buffer.fill(name, pieces)
    return buffer


@pytest.mark.parametrize("folder", ["disk", "/dev/shm"])
def test_safetensors_reads_what_was_filled_in(tmp_path: Path, folder: str) -> None:
    # A file system in memory may refuse to be written around the page cache.
    path = (tmp_path if folder == "disk" else Path(folder)) / f"buffer-{os.getpid()}.safetensors"
    try:
        written = filled(TENSORS).write(path)
        found = load_file(path)
        assert written == checksum(path)
    finally:
        path.unlink(missing_ok=True)
    assert found.keys() == TENSORS.keys()
    for name, pieces in TENSORS.items():
        expected = pieces[0] if len(pieces) == 1 else torch.cat([piece.reshape(-1) for piece in pieces])
        assert found[name].equal(expected), name
        assert found[name].dtype == expected.dtype


@pytest.mark.parametrize("elements", [0, 1, 1021, 1024, 5_000_000])
def test_every_size_is_written_whole(tmp_path: Path, elements: int) -> None:
    tensor = torch.arange(elements, dtype=torch.float32)
    buffer = filled({"x": [tensor]})
    path = tmp_path / "x.safetensors"
    assert buffer.write(path) == checksum(path)
    assert path.stat().st_size == buffer.bytes
    assert load_file(path)["x"].equal(tensor)


def test_an_image_is_filled_again_for_the_next_save(tmp_path: Path) -> None:
    buffer = filled({"x": [torch.zeros(5000)]})
    buffer.write(tmp_path / "first")
    buffer.fill("x", [torch.ones(5000)])
    buffer.write(tmp_path / "second")
    assert load_file(tmp_path / "first")["x"].eq(0).all()
    assert load_file(tmp_path / "second")["x"].eq(1).all()


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        filled({"x": [torch.zeros(5000)]}).write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"precious"


def test_a_file_system_that_takes_no_direct_writes_gets_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert filled(TENSORS).write(tmp_path / "x") == checksum(tmp_path / "x")
    assert load_file(tmp_path / "x")["weight"].equal(TENSORS["weight"][0])
