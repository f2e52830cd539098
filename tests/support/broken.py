"""Functions that damage checkpoints."""

from __future__ import annotations

import zipfile
from pathlib import Path


def begin_of(path: Path, record: str) -> int:
    """Where the bytes of a record of an archive begin; its name ends like this."""
    with zipfile.ZipFile(path) as archive:
        header = next(each.header_offset for each in archive.infolist() if each.filename.endswith(record))
    data = path.read_bytes()
    lengths = (data[header + 26 : header + 28], data[header + 28 : header + 30])
    return header + 30 + sum(int.from_bytes(length, "little") for length in lengths)


def flip(path: Path, position: int) -> None:
    """Invert the bits of a byte of a file; a negative position counts from its end."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def sparse_safetensors(path: Path, size: int, last: bytes) -> None:
    """Make a file with a tensor ``w`` of so many bytes, zeros but for the last; the disk stores few of them."""
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(size - 1, 1)
        file.write(last)
