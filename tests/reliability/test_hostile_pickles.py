"""Pickles that run no code, but make far larger builtin objects than they contain."""

from __future__ import annotations

import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import archive, little_memory, look, sharded
from opcodes import GROWING, NUMBERS, ORDERED, SIZE, STATE, again, entry, named

from fsspec_csx.checkpoint.api import load
from fsspec_csx.errors import InvalidCheckpointError, UnsafeCheckpointError
from fsspec_csx.formats.dcp.layout import MANIFEST
from fsspec_csx.formats.torch_zip.pickle_bounds import ScanError, scan

pytestmark = pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated", "ignore:.*quant")


@pytest.mark.parametrize("case", GROWING)
def test_growing(tmp_path: Path, case: str) -> None:
    """What would make far more than the file holds is refused before anything of it is made, however it is packed."""
    data = entry(GROWING[case])
    path = tmp_path / "x.mdl"
    path.write_bytes(archive(data))
    errors = look(path)
    assert {type(error) for name, error in errors.items() if name != "verify"} == {InvalidCheckpointError}
    assert "its pickle" in str(errors["load"])
    path.write_bytes(archive(data, method=zipfile.ZIP_DEFLATED))
    with little_memory(), pytest.raises(InvalidCheckpointError, match="its pickle"):
        load(path)


@pytest.mark.parametrize("size", [10, 10 * 2**20])
def test_growing_item(tmp_path: Path, size: int) -> None:
    """A value of a sharded checkpoint that would grow is refused."""
    folder = sharded(tmp_path / "x", lambda found: None)
    (shard,) = folder.glob("*.distcp")
    # Over all of the shard: whatever is read of it first is such an item.
    data = archive(b"\x80\x02" + GROWING["a bytearray"] + b".", {"0": bytes(size)})

    def moved(found: Any) -> None:
        for place in found.storage_data.values():
            place.offset, place.length = 0, len(data)
            vars(place).pop("plain", None)

    again_at = sharded(tmp_path / "y", moved)
    (shard,) = again_at.glob("*.distcp")
    shard.write_bytes(data)
    with little_memory(), pytest.raises(InvalidCheckpointError, match="its pickle"):
        load(again_at)


def _sparse() -> dict[str, torch.Tensor]:
    def coo(indices: list[list[int]], values: list[float], size: int) -> torch.Tensor:
        return torch.sparse_coo_tensor(torch.tensor(indices), torch.tensor(values), (size,), check_invariants=True)

    return {
        "coo": torch.eye(5).to_sparse(),
        "uncoalesced": coo([[1, 1]], [1.0, 2.0], 3),
        "large": coo([[2**39]], [1.0], 2**40),
        "empty": coo([[]], [], 3),
        "csr": torch.eye(5).to_sparse_csr(),
        "bsc": torch.eye(4).to_sparse_bsc((2, 2)),
    }


HONEST: dict[str, Callable[[], Any]] = {
    "bytes": lambda: {"one": b"x", "long": bytes(range(256)) * 1000, "array": bytearray(b"x" * 99), "no": bytearray()},
    "containers": lambda: {"set": set(range(1000)), "count": Counter("abac"), "order": OrderedDict(a=1), "no": set()},
    "keys": lambda: {(1, (2, "x")): 1, (): 2, torch.Size([1, 2]): 3, 1.5: 4, None: 5, b"x": 6},
    "views": lambda: {"w": torch.ones(1).expand(2**34), "e": torch.zeros(0, 5), "t": torch.ones(3, 4).t()},
    "many of one": lambda: dict.fromkeys(map(str, range(3000)), torch.ones(4)),
    "parameters": lambda: {"p": torch.nn.Parameter(torch.ones(2))},
    "a model": lambda: torch.nn.TransformerEncoderLayer(8, 2, 16).state_dict(),
    "sparse": _sparse,
    "others": lambda: {"d": torch.device("cpu"), "t": torch.float16, "s": torch.Size([2]), "n": 2**200, "c": 1j},
    "meta": lambda: {"m": torch.empty(2**40, device="meta")},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", HONEST)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_honest(tmp_path: Path, case: str, zipped: bool) -> None:
    """What torch.save writes is loaded as torch.load loads it."""
    path = tmp_path / "x.mdl"
    torch.save(HONEST[case](), path, _use_new_zipfile_serialization=zipped)
    with little_memory():
        found = load(path)
    expected = torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for one, other in zip(found.values(), expected.values(), strict=True):
        assert type(one) is type(other)
        assert _form(one) == _form(other)


def _form(value: Any) -> Any:
    """A value, or what can be said of a tensor without making all of its elements."""
    if not isinstance(value, torch.Tensor):
        return value
    form = value.shape, value.dtype, value.layout, value.device, value.requires_grad
    plain = value.layout == torch.strided and value.device.type != "meta"
    return (*form, value.stride(), bytes(value.untyped_storage())) if plain else form


@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_opcode(protocol: int) -> None:
    """The scan reads over pickles of Python itself."""
    long = {"x" * 300: b"y" * 300, "z" * 70_000: b"z" * 70_000, "n": [2**31, -1, 300, 2**3000, 1.5, None, True, False]}
    obj: list[Any] = [long, (1, 2, 3, 4), (1,), (1, 2), (1, 2, 3), set(range(5)), frozenset([1]), bytearray(b"x")]
    obj += [Counter("ab"), [(each,) for each in range(1000)]]  # more than 256 that are remembered
    made: OrderedDict[str, int] = OrderedDict()
    vars(made)["x"] = 1
    data = pickle.dumps([obj, obj, made], protocol)
    scan(data + b"what follows")
    for length in range(0, len(data), 97):
        with pytest.raises(ScanError):
            scan(data[:length])


@pytest.mark.parametrize(
    "opcode", [b"2", b"0", b"I1\n", b"(lp0\n", b"P0\n", b"\x82\x01", b"\x8f", b"(\x90", b"r\xff\xff\xff\x7f"]
)
def test_other_opcodes(opcode: bytes) -> None:
    """Opcodes that pickle does not write, and numbers that would take memory, end the scan."""
    with pytest.raises(ScanError):
        scan(b"\x80\x02}" + opcode + b".")


# -- sparse tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        ("torch.sparse_coo", torch.tensor([[-5, 2]]), torch.ones(2), torch.Size([4]), True),
        ("torch.sparse_coo", torch.tensor([[0, 2**60]]), torch.ones(2), torch.Size([4]), False),
        ("torch.sparse_csr", torch.tensor([0, 2**40, 2]), torch.tensor([0, 1]), torch.ones(2), torch.Size([2, 2])),
        ("torch.sparse_csc", torch.tensor([0, 1, 2]), torch.tensor([0, 2**40]), torch.ones(2), torch.Size([2, 2])),
    ],
    ids=["negative", "far", "rows", "columns"],
)
def test_indices_that_lead_outside(tmp_path: Path, parts: tuple[Any, ...]) -> None:
    """A sparse tensor whose indices would have torch read and write elsewhere in memory is refused."""
    saved = {"x": _Sparse(*parts)}
    path = tmp_path / "x.mdl"
    torch.save(saved, path)
    errors = look(path)
    assert isinstance(errors["load"], InvalidCheckpointError)
    assert "invalid indices" in str(errors["load"])
    assert isinstance(errors["diff"], InvalidCheckpointError)


class _Sparse:
    """Is pickled as a sparse tensor of these parts."""

    def __init__(self, layout: str, *parts: Any) -> None:
        self._made = (_layout(layout), parts)

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_sparse_tensor, self._made


class _layout:  # noqa: N801
    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> Any:
        return torch.serialization._get_layout, (self._name,)


# -- manifests ---------------------------------------------------------------------------------------------------------

META = "torch.distributed.checkpoint.metadata"
CHUNK = named(f"{META}.ChunkStorageMetadata") + b")\x81"
MANIFESTS = {
    "copies": again(b"](" + NUMBERS + b"e", SIZE, 20_000),
    "mappings": again(STATE, ORDERED, 4000),
    "twice the same": b"]K\x01a" + b"2\x86" * 60,
    "text of old": b"(lp0\nI1\na",
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_growing_manifests(tmp_path: Path, case: str) -> None:
    """A manifest that would grow far beyond its bytes is refused."""
    (tmp_path / MANIFEST).write_bytes(b"\x80\x04" + MANIFESTS[case] + b".")
    with little_memory(), pytest.raises(InvalidCheckpointError, match="its pickle"):
        load(tmp_path)


def _shares_chunks(found: Any) -> None:
    chunks = found.state_dict_metadata["x"].chunks * 1000
    for count in range(1000):
        copy = type(found.state_dict_metadata["x"])(found.state_dict_metadata["x"].properties, torch.Size([3]), chunks)
        found.state_dict_metadata[str(count)] = copy


def _shares_paths(found: Any) -> None:
    path = ("a",) * 200
    found.state_dict_metadata |= {f"v{count}": found.state_dict_metadata["y"] for count in range(50_000)}
    found.planner_data = dict.fromkeys(found.state_dict_metadata, path)


@pytest.mark.parametrize(("change", "said"), [(_shares_chunks, "number of chunks"), (_shares_paths, "number of names")])
def test_parts_that_are_in_many_places(tmp_path: Path, change: Any, said: str) -> None:
    """A part of a manifest that lies in very many places is refused."""
    folder = sharded(tmp_path / "x", change)
    with little_memory(), pytest.raises(InvalidCheckpointError, match=said):
        load(folder)


def test_names_that_are_long(tmp_path: Path) -> None:
    """What a manifest names is reported in few words."""
    (tmp_path / MANIFEST).write_bytes(b"\x80\x04c" + b"x" * 2**20 + b"\ny\n.")
    with pytest.raises(UnsafeCheckpointError) as caught:
        load(tmp_path)
    assert len(str(caught.value)) < 1000
