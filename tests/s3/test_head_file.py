"""The first bytes of objects, and objects that a get of many writes to local files as they arrive."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from fsspec_csx.s3.first_bytes import FirstBytes, HeadFile
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.range_planning import size_for

MIB = 2**20
DATA = os.urandom(3 * MIB + 17)
NEAR = functools.partial(size_for, in_flight=10)
HEADERS = {"Content-Length": str(len(DATA)), "x-amz-checksum-crc64nvme": CRC64NVME.encoded(CRC64NVME.compute(DATA, 0))}


def receive(head: HeadFile, data: bytes, headers: dict[str, str], size: int) -> None:
    """Let so many bytes of an object come."""
    head.expect(200, {"ETag": "x"} | headers)
    while len(memory := head.next_buffer(MIB)) and head.filled < size:
        assert len(memory) <= MIB
        memory[:] = data[head.filled : head.filled + len(memory)]
        head.advance(len(memory))


def test_written_as_it_comes(tmp_path: Path) -> None:
    """No more than 1 MiB is in memory; the file appears when it is whole, and nothing is left of another one."""
    folder = tmp_path / "own"
    folder.mkdir()
    target = folder / "x"
    target.write_bytes(b"old")
    head = HeadFile("x", NEAR, str(target), lambda: True)
    receive(head, os.urandom(len(DATA)), HEADERS, 2 * MIB)
    head.restart()
    receive(head, DATA, HEADERS, len(DATA))
    assert not len(head.memory)
    assert target.read_bytes() == b"old"
    assert head.has_checksum()
    assert head.store()
    assert target.read_bytes() == DATA
    replaced = HeadFile("x", NEAR, str(target), lambda: True)
    receive(replaced, DATA, HEADERS, 2 * MIB)
    replaced.restart()
    receive(replaced, b"short", {"Content-Length": "5"}, 5)
    assert replaced.store()
    assert target.read_bytes() == b"short"
    link = tmp_path / "link"
    link.symlink_to("own")
    linked = HeadFile("x", NEAR, str(link / "x"), lambda: True)
    receive(linked, DATA, HEADERS, 2 * MIB)
    linked.restart()
    link.unlink()
    receive(linked, DATA, HEADERS, len(DATA))
    assert linked.store()
    assert target.read_bytes() == DATA
    damaged = HeadFile("x", NEAR, str(target), lambda: True)
    receive(damaged, bytes(len(DATA)), HEADERS, len(DATA))
    assert not damaged.has_checksum()
    damaged.forget()
    assert os.listdir(folder) == ["x"]


def test_what_is_not_written_as_it_comes(tmp_path: Path) -> None:
    """The beginning of a larger object stays in memory, for its file; so does what goes to a pipe or a device."""
    folder = tmp_path / "own"
    folder.mkdir()
    for size, writable in ((6 * MIB, True), (3 * MIB, False)):
        head = HeadFile("x", NEAR, str(folder / "x"), lambda writable=writable: writable)  # type: ignore[misc]
        data = os.urandom(size)
        receive(head, data, {"Content-Length": str(size)}, min(size, 4 * MIB))
        assert bytes(head.memory) == data[: 4 * MIB]
        assert writable or not head.store()
        head.forget()
    assert os.listdir(folder) == []


def test_share_of_the_first_request() -> None:
    """It stays the same in a second attempt, though further requests would have another size by now."""
    parts = [MIB, 2 * MIB, 3 * MIB]
    head = FirstBytes("x", lambda size: parts.pop(0))
    announced = list[int]()
    head.announce = lambda: announced.append(head.length)
    for _ in range(2):
        head.expect(200, {"ETag": "x", "Content-Length": str(6 * MIB)})
    assert announced == [MIB, MIB]
    head.expect(200, {"ETag": "y", "Content-Length": str(4 * MIB)})
    assert (head.length, head.cut_off, len(announced)) == (4 * MIB, False, 2)
