"""A safetensors file in host memory: tensors are copied into it at once, and it is written to disk later.

Not written by ``safetensors``, because that library holds the GIL while it writes, which would stop training. The
format is 8 bytes of header length, a JSON header, and the tensors' bytes; ``safetensors`` reads the files back.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 8 * 2**20
_PAGE = mmap.PAGESIZE

Layout = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


class SafetensorsBuffer:
    """One safetensors file of tensors of a fixed ``layout`` (name, dtype, shape of each), reused by every save."""

    def __init__(self, layout: Layout, *, pinned: bool) -> None:
        # Large elements first: the format wants each tensor aligned to its element size.
        ordered = sorted(layout, key=lambda each: (-each[1].itemsize, each[0]))
        header: dict[str, dict[str, Any]] = {}
        offset = 0
        for name, dtype, shape in ordered:
            size = dtype.itemsize * torch.Size(shape).numel()
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": (offset, offset + size)}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.layout = layout
        self.bytes = 8 + len(text) + offset
        # Page-aligned, as O_DIRECT needs it.
        memory = torch.empty(self.bytes + _PAGE, dtype=torch.uint8, pin_memory=pinned)
        shift = -memory.data_ptr() % _PAGE
        self._memory = memory[shift : shift + self.bytes]
        head = len(text).to_bytes(8, "little") + text
        self._memory[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        self._tensors: dict[str, Tensor] = {}
        for name, dtype, shape in ordered:
            begin, end = header[name]["data_offsets"]
            self._tensors[name] = self._memory[len(head) + begin : len(head) + end].view(dtype).view(shape)

    def fill(self, name: str, pieces: Sequence[Tensor]) -> None:
        """Copy a tensor, or the pieces of a vector, into the buffer; copies from a GPU are asynchronous."""
        if len(pieces) == 1:
            self._tensors[name].copy_(pieces[0], non_blocking=True)
            return
        start = 0
        for piece in pieces:
            self._tensors[name][start : start + piece.numel()].copy_(piece.reshape(-1), non_blocking=True)
            start += piece.numel()

    def write(self, path: Path) -> str:
        """Write and fsync the file; returns its XXH3-128 checksum, 32 hex digits. Raises ``OSError``.

        Written with O_DIRECT where the file system supports it: the copy into the page cache would cost training as
        much time as the rest of the save, and evict the shards. Does not hold the GIL.
        """
        try:
            return self._write(path, os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        path.unlink(missing_ok=True)
        return self._write(path, 0)

    def _write(self, path: Path, direct: int) -> str:
        digest = xxhash.xxh3_128()
        content = memoryview(self._memory.numpy().data)
        whole = self.bytes - self.bytes % _PAGE if direct else self.bytes
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | direct, 0o644)
        try:
            _write(file, content[:whole], digest.update)
            # O_DIRECT takes whole pages only.
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~direct)
            _write(file, content[whole:], digest.update)
            os.fsync(file)
        finally:
            os.close(file)
        return digest.hexdigest()


def layout_of(tensors: Mapping[str, Sequence[Tensor]]) -> Layout:
    """The layout of named tensors: a single tensor keeps its shape, several become one vector."""
    layout = []
    for name, pieces in tensors.items():
        shape = tuple(pieces[0].shape) if len(pieces) == 1 else (sum(piece.numel() for piece in pieces),)
        layout.append((name, pieces[0].dtype, shape))
    return tuple(layout)


def _write(file: int, content: memoryview, seen: Callable[[memoryview], None]) -> None:
    for start in range(0, len(content), _CHUNK):
        chunk = content[start : start + _CHUNK]
        seen(chunk)
        while chunk:
            chunk = chunk[os.write(file, chunk) :]
