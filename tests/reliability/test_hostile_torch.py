"""Malicious torch files."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Call, Storage, archive, few, little_memory, look, many, tensor
from hypothesis import given
from hypothesis import strategies as st

from fsspec_csx.checkpoint.api import inspect, load
from fsspec_csx.errors import CheckpointLimitError, InvalidCheckpointError, MissingEntryError, UnsafeCheckpointError

# What torch says of files that it does not like.
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:.*TypedStorage is deprecated")

DEFLATED = zipfile.ZIP_DEFLATED


def written(folder: Path, data: bytes) -> Path:
    """A file with these bytes."""
    path = folder / "x.mdl"
    path.write_bytes(data)
    return path


def laughs(depth: int) -> list[Any]:
    """A list that holds the one before twice, and so on."""
    found: list[Any] = [1]
    for _ in range(depth):
        found = [found, found]
    return found


def rebuilt(state: dict[str, Any]) -> Call:
    """A tensor with attributes."""
    rest = (torch._utils._rebuild_tensor_v2, torch.Tensor, (Storage(), 0, (4,), (1,), False, OrderedDict()), state)
    return Call(torch._tensor._rebuild_from_type_v2, *rest)


REFUSED: dict[str, Any] = {
    "a storage larger than its record": tensor((2**20,), storage=Storage(2**20)),
    "a storage of terabytes": tensor((2**40,), storage=Storage(2**40)),
    "a storage of a negative size": tensor((1,), storage=Storage(-1)),
    "a storage whose size is text": tensor((1,), storage=Storage("a")),
    "a storage without a record": tensor(storage=Storage(key="7")),
    "a storage outside the folder": tensor(storage=Storage(key="../version")),
    "a storage on no device": tensor(storage=Storage(location=None)),
    "a view beyond its storage": tensor((5,)),
    "a view of terabytes": tensor((2**40,)),
    "a view that begins behind its storage": tensor((1,), offset=2**62),
    "a view that begins before its storage": tensor((1,), offset=-1),
    "a view that goes backwards": tensor((2,), (-1,), 1),
    "a view of a negative size": tensor((-1,)),
    "a view that overflows": tensor((2**62, 4), (2**62, 2**62)),
    "a view of nothing that overflows": tensor((2**32, 2**32), (0, 0)),
    "a view of half an element": tensor((1.5,)),
    "a bytearray of petabytes": Call(bytearray, 10**15),
    "a tensor without a storage, of terabytes": Call(torch.Tensor, 10**13),
    "a storage that is made, of terabytes": Call(torch.UntypedStorage, 10**13),
    "a count of what cannot be counted": Call(Counter, True),
    "no layout": Call(torch._utils._rebuild_sparse_tensor, None, None),
    "a number in place of a device": Call(torch.device, "nothing"),
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str, method: int) -> None:
    """What claims what it has not, or takes no end, is refused, and looked at in no way that breaks down."""
    path = written(tmp_path, archive({"x": REFUSED[case]}, method=method))
    assert isinstance(look(path)["load"], InvalidCheckpointError)


LOADED: dict[str, Any] = {
    "a list that grows": laughs(40),
    "a mapping in place of its own method": Call(OrderedDict, state={"items": 1}),
    "a tensor in place of its own methods": rebuilt({"numel": 1, "untyped_storage": 2}),
}


@pytest.mark.parametrize("case", LOADED)
def test_loaded_as_torch_loads_it(tmp_path: Path, case: str) -> None:
    """What torch loads is loaded, and where it cannot be walked through or used, that is a limit, not damage."""
    errors = look(written(tmp_path, archive({"x": LOADED[case]})))
    assert errors["load"] is None
    assert {type(error) for error in errors.values()} == {type(None), CheckpointLimitError}


PICKLES = {
    "text beyond the end": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "a number beyond the end": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "bytes beyond the end": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "nothing remembered": b"\x80\x02h\x07.",
    "nothing at all": b"",
    "nothing on the stack": b"\x80\x02.",
    "a name that is no text": b"\x80\x02c\xff\n\xff\n.",
    "half a name": b"\x80\x02cfoo",
    "a name with a backslash": b"\x80\x02ctorch\n\\orage\n.",
    "a key that is a list": b"\x80\x02}]K\x01s.",
    "a key that is no text": b"\x80\x02}X\x02\x00\x00\x00\xff\xffK\x01s.",
    "a storage that is a number": b"\x80\x02K\x01Q.",
    "a storage with too few fields": b"\x80\x02X\x07\x00\x00\x00storage\x85Q.",
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickles(tmp_path: Path, case: str) -> None:
    """A pickle that is not whole is refused."""
    errors = look(written(tmp_path, archive(PICKLES[case])))
    assert isinstance(errors["load"], (InvalidCheckpointError, UnsafeCheckpointError))


@pytest.mark.parametrize("data", [b"]" * 20_000 + b"a" * 19_999, b")" + b"\x85" * 5_000], ids=["list", "tuple"])
def test_depth(tmp_path: Path, data: bytes) -> None:
    """A list or a tuple as deep as the file is long exceeds a limit."""
    errors = look(written(tmp_path, archive(b"\x80\x02" + data + b".")))
    assert isinstance(errors["load"], CheckpointLimitError)


def test_a_device_that_is_none(tmp_path: Path) -> None:
    """A storage on a device of no known kind is refused with what to do, and is loaded on another."""
    path = written(tmp_path, archive({"x": tensor(storage=Storage(location="nothing"))}))
    with pytest.raises(InvalidCheckpointError, match="map_location"):
        load(path)
    assert load(path, map_location="cpu")["x"].shape == (4,)


def test_a_number_that_is_remembered(tmp_path: Path) -> None:
    """What a pickle remembers by a large number, for which Python would reserve memory, is refused."""
    path = written(tmp_path, archive(b"\x80\x02}r\xff\xff\xff\x7f."))
    with little_memory(), pytest.raises(InvalidCheckpointError, match="memo indexes beyond its length"):
        load(path)


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("protocol", range(6))
def test_code(tmp_path: Path, protocol: int, method: int) -> None:
    """Nothing runs what a file names, whatever is done with it."""
    marker = tmp_path / "marker"
    data = pickle.dumps({"x": Runs(marker)}, protocol)
    errors = look(written(tmp_path, archive(data, method=method)))
    assert isinstance(errors["load"], UnsafeCheckpointError)
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()


@pytest.mark.parametrize("function", [eval, exec, getattr, setattr, __import__, torch.load, torch.hub.load, open])
def test_functions(tmp_path: Path, function: Any) -> None:
    """Functions that lead to others are refused by name."""
    path = written(tmp_path, archive({"x": Call(function, "x")}))
    with pytest.raises(UnsafeCheckpointError, match=function.__name__):
        load(path)


def test_shared_entries_are_loaded(tmp_path: Path) -> None:
    """What lies in a checkpoint several times, or holds itself, is no bomb."""
    shared = {str(number): torch.ones(1) for number in range(100)}
    path = tmp_path / "x.mdl"
    torch.save({str(number): shared for number in range(30)}, path)
    assert len(load(path, keys=["7"])["7"]) == 100
    assert len(inspect(path).tensors) == 3000
    ring: list[Any] = []
    ring.append(ring)
    torch.save(ring, path)
    assert load(path)[0][0] is not None


def test_names_of_any_kind(tmp_path: Path) -> None:
    """A missing name among many long and dotted ones is an error with a short message."""
    names = {"." * 1_000_000: 1, "x" * 1_000_000: 1} | {"ab" * 45 + str(number): 1 for number in range(20_000)}
    path = written(tmp_path, archive(names))
    with pytest.raises(MissingEntryError) as caught:
        load(path, keys=["ba" * 45])
    assert len(str(caught.value)) < 10_000


# -- the archive -------------------------------------------------------------------------------------------------------


def test_zip_bombs(tmp_path: Path) -> None:
    """A record that is packed more densely than any of its kind is refused before it is unpacked."""
    pickle_of_zeros = b"\x80\x02" + b"N0" * (20 * 2**20) + b"N."
    data = archive(pickle_of_zeros, method=DEFLATED)
    assert len(data) < 2**20
    errors = look(written(tmp_path, data))
    assert {type(errors[name]) for name in ("load", "inspect", "safetensors")} == {InvalidCheckpointError}


def test_records_that_share_their_bytes(tmp_path: Path) -> None:
    """Thousands of records whose bytes are those of one are refused, as together they have more than the file."""
    names = [f"x/data/{number}" for number in range(2000)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", DEFLATED) as file:
        file.writestr("x/data.pkl", b"\x80\x02}.")
        file.writestr(names[0], bytes(2**20))
        shared = file.getinfo(names[0])
        for name in names[1:]:
            made = zipfile.ZipInfo(name)
            for field in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(made, field, getattr(shared, field))
            file.filelist.append(made)
            file.NameToInfo[name] = made
    errors = look(written(tmp_path, buffer.getvalue()))
    assert isinstance(errors["load"], InvalidCheckpointError)
    assert "claims more than" in errors["load"].reason


def test_a_directory_that_is_hidden(tmp_path: Path) -> None:
    """An archive whose directory is not where torch.save has it is refused: what it claims cannot be seen."""
    for ending in (b"PK\x05\x06" + bytes(16) + struct.pack("<H", 0), b"x" * 10):
        path = written(tmp_path, archive({"x": tensor()}) + ending)
        assert isinstance(look(path)["load"], InvalidCheckpointError)
    buffer = io.BytesIO(archive({"x": tensor()}))
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = b"a comment"
    errors = look(written(tmp_path, buffer.getvalue()))
    assert "directory" in str(errors["load"])


# -- any bytes ---------------------------------------------------------------------------------------------------------


def _of_torch(**options: Any) -> bytes:
    buffer = io.BytesIO()
    state = {
        "a": torch.arange(6.0).view(2, 3),
        "b": [torch.ones(3, dtype=torch.int8), "text", 5],
        "c": {"d": (1, None)},
    }
    torch.save(state, buffer, **options)
    return buffer.getvalue()


SEEDS = [
    _of_torch(),
    _of_torch(_use_new_zipfile_serialization=False),
    archive({"x": tensor(), "y": [tensor((2,), (2,), 1), "text"]}, method=DEFLATED),
]
NUMBERS = [0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def _written_over(data: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    """Bytes with numbers of some sizes written over them; positions count from the end where most of a zip lies."""
    found = bytearray(data)
    for position, size, number in changes:
        at = position % max(1, len(found) - size)
        found[at : at + size] = (number % 256**size).to_bytes(size, "little")
    return bytes(found)


changes = st.lists(
    st.tuples(
        st.integers(0, 2**16), st.sampled_from([1, 1, 2, 4, 8]), st.sampled_from(NUMBERS) | st.integers(0, 2**64)
    ),
    min_size=1,
    max_size=6,
)


def _look_at_changed(folder: Path, data: bytes, edits: list[tuple[int, int, int]], cut: int) -> None:
    found = _written_over(data, edits)
    found = found[: len(found) - cut % len(found)] if cut % 8 == 0 else found
    look(written(folder, found))


@few
@given(st.sampled_from(SEEDS), changes, st.integers(1, 2**12))
def test_any_change(tmp_path: Path, data: bytes, edits: list[tuple[int, int, int]], cut: int) -> None:
    """Whatever is written over a torch file, each look at it ends well, or with an error of ours."""
    _look_at_changed(tmp_path, data, edits, cut)


@pytest.mark.long
@pytest.mark.timeout(3000)
@many
@given(st.sampled_from(SEEDS), changes, st.integers(1, 2**12))
def test_any_change_at_length(tmp_path: Path, data: bytes, edits: list[tuple[int, int, int]], cut: int) -> None:
    """The same, with other examples each time."""
    _look_at_changed(tmp_path, data, edits, cut)
