"""Objects beyond 32-bit sizes, up to the largest of S3, on a server that stores no zeros."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import MIB
from memory import little_memory
from null_server import NullServer, Request, null_server
from sparse import Sparse

import fsspec_csx as cstorch
from fsspec_csx.errors import RefusedError
from fsspec_csx.s3 import part_sizes
from fsspec_csx.s3 import writer as s3_writer
from fsspec_csx.s3.part_sizes import LARGEST_PART, LEAST_PART, PARTS, part_size, part_size_for
from fsspec_csx.s3.transport.transfer import PART

GIB, TIB = 2**30, 2**40
LARGEST = PARTS * LARGEST_PART
MARK = os.urandom(1000)
# Memory that is only read: then it takes none.
UNTOUCHED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
LONG = pytest.param(51 * GIB, marks=[pytest.mark.long, pytest.mark.timeout(1800)])


@pytest.fixture
def null() -> Iterator[NullServer]:
    """A server that keeps no zeros."""
    with null_server() as server:
        yield server


def marked(size: int) -> dict[int, bytes]:
    """What is not zero in an object of the tests: the ends, and the borders of 31 and 32 bits."""
    borders = [each - len(MARK) // 2 for each in (2**31, 2**32) if each < size]
    return dict.fromkeys([0, *borders, size - len(MARK)], MARK)


def lengths(requests: Sequence[Request]) -> list[int]:
    """Bytes of the parts that were sent, in their order."""
    return [each.length for each in sorted(requests, key=lambda each: int(each.query["partNumber"]))]


def check_parts(sizes: Sequence[int], total: int) -> None:
    """Parts are what S3 takes, and all of the object."""
    assert sum(sizes) == total
    assert len(sizes) <= PARTS
    assert max(sizes) <= LARGEST_PART
    assert min(sizes[:-1]) >= LEAST_PART


def check_object(server: NullServer, path: str, size: int) -> None:
    """An object has the marks, and else zeros."""
    found = server.objects[path]
    assert found.size == size
    assert server.uploads == {}
    for at, data in marked(size).items():
        assert b"".join(found.read(at, at + len(data))) == data
    assert sum(len(data) - data.count(0) for data in found.pieces.values()) == len(marked(size)) * (
        len(MARK) - MARK.count(0)
    )


# -- written -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [pytest.param(4 * GIB + 100 * MIB, marks=pytest.mark.long), LONG])
def test_written_to_a_file(null: NullServer, size: int) -> None:
    """Data of unknown length that is written through open is sent in growing parts."""
    fs = null.filesystem()
    memory = memoryview(bytearray(16 * MIB))
    marks = marked(size)
    with little_memory(160 * MIB), fs.open("large/x", "wb") as file:
        for at in sorted(marks):
            while file.tell() < at:
                file.write(memory[: at - file.tell()])
            file.write(marks[at])
    check_object(null, "large/x", size)
    sent = null.made("upload_part")
    check_parts(lengths(sent), size)
    assert all(each == part_size(number) for number, each in enumerate(lengths(sent)[:-1], 1))
    assert all("x-amz-checksum-crc64nvme" in each.headers for each in sent)
    assert fs.size("large/x") == size


@pytest.mark.parametrize("size", [LONG])
def test_local_file(null: NullServer, tmp_path: Path, size: int) -> None:
    """A local file becomes an object in parts that are as large as 10,000 of them need be, and no larger."""
    with open(tmp_path / "x", "wb") as file:
        file.truncate(size)
        for at, data in marked(size).items():
            os.pwrite(file.fileno(), data, at)
    with little_memory(100 * MIB):
        null.filesystem().put_file(str(tmp_path / "x"), "large/x")
    check_object(null, "large/x", size)
    check_parts(lengths(null.made("upload_part")), size)
    assert set(lengths(null.made("upload_part"))[:-1]) == {part_size_for(size)}


@pytest.mark.parametrize("size", [2 * GIB + 100 * MIB, LONG])
@pytest.mark.parametrize("suffix", ["mdl", pytest.param("safetensors", marks=pytest.mark.long)])
def test_checkpoint(null: NullServer, size: int, suffix: str) -> None:
    """A checkpoint of many gigabytes is saved, inspected, and loaded in part from its far end by short reads."""
    zeros = mmap.mmap(-1, size, flags=UNTOUCHED)
    quarter = size // 4
    state = {
        f"w{number}": torch.frombuffer(zeros, dtype=torch.uint8, offset=number * quarter, count=quarter)
        for number in range(4)
    }
    state["z"] = torch.arange(1000.0)
    path = f"s3://large/x.{suffix}"
    options = {"endpoint_url": null.url, "key": "nobody", "secret": "nothing"}
    with little_memory(160 * MIB):
        cstorch.save(state, path, storage_options=options)
        assert 0 < null.objects[f"large/x.{suffix}"].size - 4 * quarter < MIB
        report = cstorch.inspect(path, storage_options=options)
        assert {name: each.shape for name, each in report.tensors.items()} == {
            **{f"w{number}": (quarter,) for number in range(4)},
            "z": (1000,),
        }
        loaded = cstorch.load(path, keys=["z"], storage_options=options)
    assert torch.equal(loaded["z"], state["z"])
    check_parts(lengths(null.made("upload_part")), null.objects[f"large/x.{suffix}"].size)
    assert len(null.made("get_object")) < 10


# -- read --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", [2**31, 2**32, 5 * TIB, LARGEST - 10 * MIB])
def test_ranges_at_far_positions(null: NullServer, border: int) -> None:
    """Bytes on both sides of a border are read from where they are, by every way to read."""
    data = os.urandom(9 * MIB)
    start = border - 5 * MIB
    null.objects["large/x"] = Sparse(LARGEST, {start: data})
    fs = null.filesystem()
    assert fs.cat_file("large/x", start=start, end=start + len(data)) == data
    assert fs.cat_file("large/x", start=start - LARGEST, end=start - LARGEST + 100) == data[:100]
    near = border - start
    assert fs.cat_ranges(["large/x"] * 2, [border - 7, border + 9], [border, border + 99]) == [
        data[near - 7 : near],
        data[near + 9 : near + 99],
    ]
    with fs.open("large/x") as file:
        assert file.seek(border - 10) == border - 10
        assert file.read(20) == data[near - 10 : near + 10]
        whole = bytearray(len(data))
        file.seek(start)
        assert file.readinto(whole) == len(data)
        assert whole == data
        assert file.tell() == start + len(data)
        pieces = bytearray(10), bytearray(5 * MIB)
        file.readinto_many([(border, memoryview(pieces[0])), (start, memoryview(pieces[1]))])
        assert pieces[0] == data[near : near + 10]
        assert pieces[1] == data[: 5 * MIB]
    assert fs.size("large/x") == LARGEST


# -- copied ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [
        9 * GIB + 1,
        pytest.param(320 * GIB, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
        pytest.param(5 * TIB, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_copied_by_the_server(null: NullServer, size: int) -> None:
    """Each byte is copied once, in parts that S3 takes, and the copy has what the source has."""
    null.objects["large/x"] = Sparse(size, marked(size))
    null.filesystem().cp_file("large/x", "large/y")
    asked = [each.headers["x-amz-copy-source-range"][6:].split("-") for each in null.made("upload_part_copy")]
    spans = sorted((int(first), int(last) + 1) for first, last in asked)
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    check_parts([end - start for start, end in spans], size)
    check_object(null, "large/y", size)


@pytest.mark.parametrize("size", [5 * GIB, 5 * GIB + 1, 11 * GIB])
def test_appended_to(null: NullServer, size: int) -> None:
    """The server copies the object but for its end, and what is written follows it, in parts of one size."""
    null.objects["large/x"] = Sparse(size - len(MARK), {0: MARK})
    with null.filesystem().open("large/x", "ab") as file:
        file.write(MARK)
    found = null.objects["large/x"]
    assert found.size == size
    assert [b"".join(found.read(at, at + len(MARK))) for at in (0, size - len(MARK))] == [MARK, MARK]
    assert sum(len(data) - data.count(0) for data in found.pieces.values()) == 2 * (len(MARK) - MARK.count(0))
    assert sum(each.length for each in null.made("upload_part")) <= PART + len(MARK)
    copied = {each.headers["x-amz-copy-source-range"] for each in null.made("upload_part_copy")}
    assert copied == {f"bytes={at}-{at + PART - 1}" for at in range(0, len(copied) * PART, PART)}


# -- planned -----------------------------------------------------------------------------------------------------------

BORDERS = [LEAST_PART, PART, PARTS * LEAST_PART, PARTS * PART, LARGEST_PART, 5 * TIB, LARGEST]


@pytest.mark.parametrize("wanted", [None, 1, LEAST_PART, PART + 1, GIB, LARGEST_PART, 2**50])
def test_parts_of_any_object(wanted: int | None) -> None:
    """Whatever the size and the chosen part, at most 10,000 valid parts hold all of it."""
    for size in sorted({border + more for border in BORDERS for more in (-MIB, -1, 0, 1, MIB)}):
        if size <= LARGEST:
            part = part_size_for(size, wanted)
            assert LEAST_PART <= part <= LARGEST_PART
            assert -(-size // part) <= PARTS
            if wanted and LEAST_PART <= wanted <= LARGEST_PART and -(-size // wanted) <= PARTS:
                assert part == wanted
        else:
            with pytest.raises(ValueError, match="Divide"):
                part_size_for(size, wanted)


@pytest.mark.parametrize("first", [LEAST_PART, PART, GIB, LARGEST_PART, 2**50])
def test_growing_parts(first: int) -> None:
    """The parts of an object of unknown length hold 5 TiB at least, whatever the first part is to be."""
    sizes = [part_size(number, first) for number in range(1, PARTS + 1)]
    check_parts(sizes, sum(sizes))
    assert sum(sizes) >= 5 * TIB


@pytest.mark.parametrize("way", ["cp_file", "take_file"])
def test_too_large_for_any_s3(null: NullServer, way: str) -> None:
    """What no object can hold is reported before anything is sent."""
    null.objects["large/x"] = Sparse(LARGEST + 1)
    fs = null.filesystem()
    with pytest.raises(ValueError, match="more than an object of S3 can have"):
        fs.cp_file("large/x", "large/y") if way == "cp_file" else fs.take_file(fs, "large/x", "large/y")
    assert null.uploads == {}
    assert {each.operation for each in null.requests} <= {"head_object"}


@pytest.mark.parametrize("fixed", [True, False])
def test_too_long_to_be_written(null: NullServer, monkeypatch: pytest.MonkeyPatch, fixed: bool) -> None:
    """A file that turns out to be too long for its parts is an error that says the remedy, and leaves nothing."""
    monkeypatch.setattr(s3_writer, "PARTS", 5)
    fs = null.filesystem(fixed_upload_size=fixed)
    with (
        pytest.raises(ValueError, match=f"full with {25 * MIB} bytes. Write it with a block_size above {5 * MIB}"),
        fs.open("large/x", "wb", block_size=5 * MIB) as file,
    ):
        file.write(memoryview(bytearray(30 * MIB + 1)))
    assert (null.objects, null.uploads) == ({}, {})
    assert len(null.made("upload_part")) <= 5


def test_store_that_takes_parts_of_one_size(null: NullServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose parts have grown, on a store such as R2, is an error that names the remedy, which helps."""
    monkeypatch.setattr(part_sizes, "FIRST_PARTS", 3)
    monkeypatch.setattr(part_sizes, "_STEP", 1)
    null.takes_equal_parts = True

    def write(**options: Any) -> None:
        with null.filesystem().open("large/x", "wb", **options) as file:
            file.write(memoryview(bytearray(40 * MIB)))

    with pytest.raises(RefusedError, match=r"only parts of one size, as Cloudflare R2, .* a larger block_size"):
        write(block_size=5 * MIB)
    assert null.uploads == {}
    write(block_size=10 * MIB)
    assert null.objects["large/x"].size == 40 * MIB


def test_part_that_is_asked_too_small(null: NullServer) -> None:
    """A part smaller than S3 takes is made as large as it must be."""
    null.filesystem().pipe_file("large/x", bytearray(12 * MIB), chunksize=MIB)
    assert lengths(null.made("upload_part")) == [5 * MIB, 5 * MIB, 2 * MIB]
