"""Scenarios of files and bytes, as every tool that knows fsspec reads and writes them."""

from __future__ import annotations

from random import Random
from typing import Any

import fsspec
from place import MIB, PART, Place, data
from scenario import UNSEEN, Scenario, alone, read, which

_NAME = "folder/file"
_PIECE = 700_001
_SMALL = [(f"small/{number}", bytes([number]) * (1000 + number)) for number in range(12)]


def _fs() -> Any:
    return fsspec.filesystem("s3")


def _put(place: Place) -> None:
    place.put(_NAME, data(1))


def _found(place: Place, _: Any) -> str:
    return alone(place, _NAME) or which(place.get(_NAME), data(1), data(2))


def _created(place: Place, _: Any) -> str:
    return alone(place, _NAME) or which(place.get(_NAME), None, place.notes["written"])


def _read(place: Place, value: Any) -> str:
    return read(data(1), value)


def _write_in_pieces(place: Place) -> None:
    with fsspec.open(f"{place.url}/{_NAME}", "wb") as file:
        for start in range(0, len(data(2)), _PIECE):
            file.write(data(2)[start : start + _PIECE])


def _create(place: Place, size: int) -> None:
    place.notes["written"] = data(2)[:size]
    with fsspec.open(f"{place.url}/{_NAME}", "xb") as file:
        file.write(data(2)[:size])


def _create_by_pipe(place: Place, size: int) -> None:
    place.notes["written"] = data(2)[:size]
    _fs().pipe_file(f"{place.path}/{_NAME}", data(2)[:size], mode="create", chunksize=PART)


def _read_in_pieces(place: Place) -> bytes:
    with fsspec.open(f"{place.url}/{_NAME}", "rb") as file:
        return b"".join(iter(lambda: file.read(_PIECE), b""))


_SPANS = [
    (start, start + length) for start, length in ((10, 7), (3 * MIB, 2 * MIB), (MIB, 100_000), (6 * MIB, 3 * MIB))
]
_EXPECTED = [data(1)[start:end] for start, end in _SPANS]


def _read_at_random(place: Place) -> list[bytes]:
    found = {}
    with fsspec.open(f"{place.url}/{_NAME}", "rb") as file:
        for start, end in Random(place.prefix).sample(_SPANS, len(_SPANS)):
            file.seek(start)
            found[start] = file.read(end - start)
    return [found[start] for start, _ in _SPANS]


def _read_ranges(place: Place) -> list[bytes]:
    starts, ends = zip(*_SPANS, strict=True)
    paths = [f"{place.path}/{_NAME}"] * len(_SPANS)
    return list(_fs().cat_ranges(paths, starts, ends, on_error="raise"))


def _uploaded(place: Place) -> None:
    (place.folder / "file").write_bytes(data(2))
    _fs().put_file(str(place.folder / "file"), f"{place.path}/{_NAME}", chunksize=PART)


def _put_both(place: Place) -> None:
    _put(place)
    (place.folder / "file").write_bytes(data(2))


def _downloaded(place: Place, _: Any) -> str:
    if others := place.local() - {"file"}:
        return f"there are {sorted(others)} besides"
    return which((place.folder / "file").read_bytes(), data(2), data(1))


def _put_small(place: Place) -> None:
    for name, content in _SMALL:
        place.put(name, content)


def _read_small(place: Place) -> dict[str, bytes]:
    found = _fs().cat([f"{place.path}/{name}" for name, _ in _SMALL])
    return {path.removeprefix(f"{place.path}/"): content for path, content in found.items()}


# The server refuses the second delivery, since the object exists, and it cannot be known that the first was ours.
_UNTOLD = frozenset({"delivered twice"})

FILES = [
    Scenario("fsspec.open, written in pieces", _put, _write_in_pieces, _found),
    Scenario(
        "fsspec.open, a new small file",
        lambda place: None,
        lambda place: _create(place, 1000),
        _created,
        _UNTOLD,
    ),
    Scenario("fsspec.open, a new large file", lambda place: None, lambda place: _create(place, 8 * MIB), _created),
    Scenario("fsspec.open, read in pieces", _put, _read_in_pieces, _read, UNSEEN),
    Scenario("fsspec.open, read at random", _put, _read_at_random, lambda place, value: read(_EXPECTED, value), UNSEEN),
    Scenario(
        "pipe",
        _put,
        lambda place: _fs().pipe_file(f"{place.path}/{_NAME}", data(2), chunksize=PART),
        _found,
    ),
    Scenario(
        "pipe, a new small file",
        lambda place: None,
        lambda place: _create_by_pipe(place, 1000),
        _created,
        _UNTOLD,
    ),
    Scenario("cat", _put, lambda place: _fs().cat_file(f"{place.path}/{_NAME}"), _read),
    Scenario("cat of ranges", _put, _read_ranges, lambda place, value: read(_EXPECTED, value), UNSEEN),
    Scenario(
        "cat of a small range",
        _put,
        lambda place: _fs().cat_file(f"{place.path}/{_NAME}", start=MIB, end=MIB + 100_000),
        lambda place, value: read(_EXPECTED[2], value),
        UNSEEN,
    ),
    Scenario("cat of small files", _put_small, _read_small, lambda place, value: read(dict(_SMALL), value)),
    Scenario("put", _put, _uploaded, _found),
    Scenario(
        "get",
        _put_both,
        lambda place: _fs().get_file(f"{place.path}/{_NAME}", str(place.folder / "file")),
        _downloaded,
    ),
]
