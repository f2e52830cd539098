"""The pieces in which bodies are sent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsspec_csx.s3.transport import request_body
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.request_body import FileSliceBody, LocalFile, MemoryBody

_DATA = os.urandom(100)


def test_known_checksums() -> None:
    """The checksum of a body of several buffers is that of its bytes, whichever of the buffers' are known."""
    memories = [memoryview(_DATA)[:40], memoryview(b""), memoryview(_DATA)[40:41], memoryview(_DATA)[41:]]
    sums = dict(enumerate(CRC64NVME.compute(each, 0) for each in memories))
    for known in ({}, sums, {0: sums[0]}, {3: sums[3]}, {1: sums[1], 2: sums[2]}):
        body = MemoryBody(memories, known)
        body.prepare()
        assert body.crc64nvme == CRC64NVME.compute(memoryview(_DATA), 0)
    wrong = MemoryBody(memories, {2: sums[2] ^ 1})
    wrong.prepare()
    assert wrong.crc64nvme != body.crc64nvme


@pytest.mark.parametrize("quick", [True, False])
def test_pieces(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces grow up to a size, but only while they are used quickly; together they are the bytes."""
    monkeypatch.setattr(request_body, "_QUICK_SECONDS", 1e9 if quick else -1.0)
    body = MemoryBody([memoryview(_DATA)[:40], memoryview(b""), memoryview(_DATA)[40:]])
    pieces = list(body.pieces(4, 16))
    assert b"".join(pieces) == _DATA
    assert [len(each) for each in pieces] == ([4, 8, 16, 12, 16, 16, 16, 12] if quick else [4] * 25)
    assert [len(each) for each in body.pieces(32)] == [32, 8, 32, 28]
    body.give_up()
    with pytest.raises(OSError, match="given up"):
        next(body.pieces(4))


def test_slices_of_a_file(tmp_path: Path) -> None:
    """However many slices of a file wait to be sent, it is open once, and as long as one of them needs it."""
    path = tmp_path / "file"
    path.write_bytes(_DATA)
    with path.open("rb") as file:
        local = LocalFile(file.fileno(), str(path))
        slices = [FileSliceBody(local, start, 1) for start in range(len(_DATA))]
    del local
    assert _open_descriptors(path) == 1
    assert b"".join(bytes(piece) for each in slices for piece in each.parts()) == _DATA
    slices.clear()
    assert _open_descriptors(path) == 0


def _open_descriptors(path: Path) -> int:
    """How many descriptors this process has of a file; other threads open and close others meanwhile."""
    return sum(os.path.realpath(f"/proc/self/fd/{each}") == str(path) for each in os.listdir("/proc/self/fd"))
