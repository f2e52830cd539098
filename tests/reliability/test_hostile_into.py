"""Malicious files, and files of another kind, loaded into existing tensors."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.callbacks import NoOpCallback
from hostile import Storage, archive, little_memory, tensor
from opcodes import GROWING, entry

from fsspec_csx import load, save
from fsspec_csx.errors import CheckpointError, DtypeCastWarning, FreedTensorError, InvalidCheckpointError, MismatchError


def target(x: Any) -> dict[str, Any]:
    """What is to be filled: a tensor before, one of any kind, one behind, and a value."""
    return {"a": torch.full((3,), 7.0), "x": x, "z": torch.full((2,), 7.0), "v": "before"}


def file_of(path: Path, x: Any) -> Path:
    """A file whose entries are those of the target."""
    save({"a": torch.zeros(3), "x": x, "z": torch.zeros(2), "v": "after"}, path)
    return path


def is_untouched(filled: dict[str, Any]) -> bool:
    """Whether all but the entry of any kind is as it was."""
    return bool((filled["a"] == 7).all()) and bool((filled["z"] == 7).all()) and filled["v"] == "before"


def quantized(value: float) -> torch.Tensor:
    """Four numbers in eight bits each."""
    return torch.quantize_per_tensor(torch.full((4,), value), 1.0, 0, torch.qint8)


KINDS: dict[str, Callable[[], Any]] = {
    "plain": lambda: torch.zeros(4),
    "other shape": lambda: torch.zeros(5),
    "other dimensions": lambda: torch.zeros(2, 2),
    "number": lambda: torch.zeros(()),
    "sparse": lambda: torch.ones(4).to_sparse(),
    "quantized": lambda: quantized(1.0),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(2)]),
    "nested otherwise": lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(1)]),
    "without data": lambda: torch.ones(4, device="meta"),
    "complex": lambda: torch.ones(4, dtype=torch.complex64),
    "text": lambda: "x",
    "mapping": lambda: {"y": torch.ones(4)},
}
FITS = {(kind, kind) for kind in KINDS} | {("plain", "quantized"), ("plain", "complex")}
FITS |= {("complex", "plain")}  # with a warning, as for all that is cast
NO_MEMORY = {("plain", "without data"), ("complex", "without data")}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:.*quant", "ignore:TypedStorage")
@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("ours", KINDS)
def test_kinds(tmp_path: Path, ours: str) -> None:
    """A tensor takes the values of one of its own kind; all else is an error, and nothing was changed."""
    for theirs, made in KINDS.items():
        filled = target(KINDS[ours]())
        path = file_of(tmp_path / "x.mdl", made())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DtypeCastWarning)
            if (theirs, ours) in FITS:
                load(path, into=filled)
                assert filled["v"] == "after"
                assert not filled["a"].any()
                continue
            expected = FreedTensorError if (theirs, ours) in NO_MEMORY else MismatchError
            with pytest.raises(expected, match="'x"):
                load(path, into=filled)
        assert is_untouched(filled), theirs


CLAIMS: dict[str, Any] = {
    "one number for terabytes": tensor((2**40,), (0,)),
    "one number for a matrix": tensor((2**20, 2**20), (0, 0)),
    "a record of terabytes": tensor((2**40,), storage=Storage(2**40)),
    "beyond its record": tensor((5,)),
    "a record that is not there": tensor(storage=Storage(key="7")),
    "no dimension": tensor((), ()),
    "more dimensions": tensor((4, 1), (1, 1)),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_claims(tmp_path: Path, case: str) -> None:
    """A tensor of other size than the one to fill is an error, takes no memory, and changes nothing."""
    path = tmp_path / "x.mdl"
    path.write_bytes(archive({"a": tensor((3,)), "x": CLAIMS[case], "z": tensor((2,)), "v": "after"}))
    filled = target(torch.full((4,), 7.0))
    with little_memory(), pytest.raises(CheckpointError):
        load(path, into=filled)
    assert is_untouched(filled)
    assert bool((filled["x"] == 7).all())


@pytest.mark.parametrize("case", ["a bytearray", "digits of digits", "a storage", "a storage that grows"])
def test_growing(tmp_path: Path, case: str) -> None:
    """A pickle that would grow is refused here, too."""
    path = tmp_path / "x.mdl"
    path.write_bytes(archive(entry(GROWING[case])))
    filled = target(torch.zeros(4))
    with little_memory(), pytest.raises(InvalidCheckpointError, match="its pickle"):
        load(path, into=filled)
    assert is_untouched(filled)


def test_one_record_for_all(tmp_path: Path) -> None:
    """Entries that share their bytes, in the file, are each filled with these."""
    path = tmp_path / "x.mdl"
    data = torch.tensor([1.0, 2.0, 3.0, 4.0]).numpy().tobytes()
    entries = {"a": tensor((3,)), "x": tensor((4,), (0,), 2), "z": tensor((2,), (2,), 1), "v": "after"}
    path.write_bytes(archive(entries, {"0": data}))
    filled = target(torch.zeros(4))
    load(path, into=filled)
    found = {key: filled[key].tolist() for key in "axz"}
    assert found == {"a": [1, 2, 3], "x": [3, 3, 3, 3], "z": [2, 4]}
    assert filled["v"] == "after"


def test_a_name_twice(tmp_path: Path) -> None:
    """Of an entry that is there twice the last one counts, as it does without a target."""
    path = tmp_path / "x.mdl"
    twice = b"\x80\x02}(X\x01\x00\x00\x00vK\x01X\x01\x00\x00\x00vK\x02u."
    path.write_bytes(archive(twice))
    assert load(path, into={"v": 0}) == load(path) == {"v": 2}


def test_names_that_meet(tmp_path: Path) -> None:
    """Entries whose dotted names are alike are filled each by its own."""
    saved = {"x.y": torch.ones(2), "x": {"y": torch.full((2,), 2.0)}}
    save(saved, tmp_path / "x.mdl")
    filled = {"x.y": torch.zeros(2), "x": {"y": torch.zeros(2)}}
    load(tmp_path / "x.mdl", into=filled)
    assert (filled["x.y"].tolist(), filled["x"]["y"].tolist()) == ([1, 1], [2, 2])  # type: ignore[index,attr-defined]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_cut(tmp_path: Path, method: int) -> None:
    """However short a file is cut, it is an error, and no value was replaced."""
    entries = {"a": tensor((3,)), "x": tensor(), "z": tensor((2,)), "v": "after"}
    whole = archive(entries, method=method)
    path = tmp_path / "x.mdl"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        filled = target(torch.zeros(4))
        with pytest.raises(InvalidCheckpointError):
            load(path, into=filled, callback=NoOpCallback())
        assert filled["v"] == "before"


def test_other_bytes(tmp_path: Path) -> None:
    """Bytes that are not those that were saved are an error that names the tensor, and no value was replaced."""
    path = file_of(tmp_path / "x.mdl", torch.full((4,), 3.0))
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((4,), 3.0).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    filled = target(torch.zeros(4))
    with pytest.raises(InvalidCheckpointError, match="'x'"):
        load(path, into=filled)
    assert filled["v"] == "before"


def test_very_many_entries_that_are_not_there(tmp_path: Path) -> None:
    """A file of very many other entries is an error that takes little memory."""
    save({f"n{number}": number for number in range(50_000)}, tmp_path / "x.mdl")
    filled = target(torch.zeros(4))
    with little_memory(), pytest.raises(MismatchError, match="lacks 'a', 'x', 'z', 'v'"):
        load(tmp_path / "x.mdl", into=filled)
    assert is_untouched(filled)
