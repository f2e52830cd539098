"""Malicious safetensors files, Cerebras and sharded checkpoints, and YAML files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from cerebras import DATA, changed, report
from hostile import MIB, few, little_memory, look, many, sharded
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import Metadata

from fsspec_csx.checkpoint.api import inspect, load
from fsspec_csx.errors import ConfigError, InvalidCheckpointError
from fsspec_csx.formats.safetensors import reader as safetensors_reader
from fsspec_csx.formats.safetensors import writer as safetensors_writer
from fsspec_csx.formats.safetensors.format import SafetensorsWriter
from fsspec_csx.trainer.config import document

# -- safetensors -------------------------------------------------------------------------------------------------------


def of_header(header: bytes, body: bytes = b"") -> bytes:
    """A safetensors file."""
    return len(header).to_bytes(8, "little") + header + body


EMPTY = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
LONG: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b'{"a":[' + b"[]," * (10 * MIB) + b"[]]}",
    "lists in lists": lambda: b'{"a":' + b"[" * (20 * MIB) + b"}",
    "mappings": lambda: b'{"a":[' + b"{}," * (10 * MIB) + b"{}]}",
    "numbers": lambda: b"{" + b",".join(b'"%d":1' % number for number in range(500_000)) + b"}",
    "white space, and no end": lambda: b"{" + b" " * (30 * MIB),
    "the same name": lambda: b"{" + b",".join([EMPTY % 1] * 100_000) + b"}",
}


@pytest.mark.parametrize("case", LONG)
def test_long_headers(tmp_path: Path, case: str) -> None:
    """A header of 30 MiB that is no header takes little more memory than it has bytes."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(of_header(LONG[case]()))
    for attempt in (load, inspect):
        with little_memory(), pytest.raises(InvalidCheckpointError, match="damaged safetensors"):
            attempt(path)


def test_more_tensors_than_any_model_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of very many tensors without bytes is refused, and not written either."""
    for module in (safetensors_reader, safetensors_writer):
        monkeypatch.setattr(module, "TENSORS_MAX", 100)
    path = tmp_path / "x.safetensors"
    path.write_bytes(of_header(b"{" + b",".join(EMPTY % number for number in range(101)) + b"}"))
    with pytest.raises(InvalidCheckpointError, match="more than 100 tensors"):
        load(path)
    with pytest.raises(ValueError, match="the limit is 100"):
        SafetensorsWriter({str(number): torch.zeros(0) for number in range(101)})


def test_long_metadata(tmp_path: Path) -> None:
    """Metadata of 30 MiB is read, with little more memory than it has bytes."""
    for text in ("x" * (30 * MIB), "😀" * (8 * MIB)):
        header = f'{{"__metadata__":{{"a":"{text}"}}}}'
        path = tmp_path / "x.safetensors"
        path.write_bytes(of_header(header.encode()))
        with little_memory():
            assert len(inspect(path).metadata["a"]) == len(text)


SMALL = of_header(
    json.dumps({
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }).encode(),
    bytes(range(32)),
)  # fmt: skip
edits = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=5)


def edited(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    """Bytes of which some are others."""
    found = bytearray(data)
    for position, value in edits:
        found[position % len(found)] = value
    return bytes(found)


@few
@given(edits, st.integers(0, 400))
def test_any_change_of_a_safetensors_file(tmp_path: Path, edits: list[tuple[int, int]], cut: int) -> None:
    """Whatever is changed in the file, each look at it ends well, or with an error of ours."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(edited(SMALL, edits)[: cut if cut % 4 == 0 else None])
    look(path)


# -- Cerebras ----------------------------------------------------------------------------------------------------------

HUGE = 2**40
CLAIMS: dict[str, dict[str, Any]] = {
    "plain": {"boundaries": [4 * HUGE], "data_sizes": [4 * HUGE]},
    "compressed a little": {"boundaries": [4 * HUGE], "data_sizes": [4 * HUGE], "compressed": True},
    "compressed beyond measure": {"boundaries": [10], "data_sizes": [4 * HUGE], "compressed": True},
}


@pytest.mark.parametrize("case", CLAIMS)
def test_bodies_of_terabytes(tmp_path: Path, case: str) -> None:
    """An object that is to be of terabytes, and is not, is refused, and no memory is taken for it."""
    entry = {"shapes": [[HUGE]], "__NUMPY__": {"shape": [HUGE], "dtype": "float32"}, **CLAIMS[case]}
    folder = changed(tmp_path / "x", "weights_plain", **report("weights_plain", "w", **entry))
    for attempt in (load, lambda path: load(path, keys=["w"])):
        with little_memory(), pytest.raises(InvalidCheckpointError, match="'w'"):
            attempt(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [HUGE], "dtype": "torch.float32", "fill_value": 1},
        {"shape": [4], "dtype": "torch.uint8", "fill_value": 10**400},
        {"shape": [4], "dtype": "torch.int32", "fill_value": float("nan")},
        {"shape": [1] * 100_000, "dtype": "torch.int32", "fill_value": 1},
    ],
    ids=["terabytes", "a large number", "no number", "dimensions"],
)
def test_tensors_of_one_number(tmp_path: Path, entry: dict[str, Any]) -> None:
    """A tensor that is full of one number must fit the memory, and the number the dtype."""
    reported_of_it = report("weights_plain", "w", __TYPE__="DeferredFullTensor", **entry)
    with little_memory(), pytest.raises(InvalidCheckpointError, match="'w'"):
        load(changed(tmp_path / "x", "weights_plain", **reported_of_it))


def test_dataset_of_terabytes(tmp_path: Path) -> None:
    """A dataset of terabytes of which nothing is stored is refused."""
    path = tmp_path / "x.mdl"
    path.write_bytes((DATA / "weights_plain" / "local.mdl").read_bytes())
    claims = {"shapes": [[HUGE]], "__NUMPY__": {"shape": [HUGE], "dtype": "float32"}, **CLAIMS["plain"]}
    with h5py.File(path, "r+") as file:
        del file["w"]
        file.create_dataset("w", (HUGE,), "f4", chunks=(1024,))
        for name, text in report("weights_plain", "w", **claims).items():
            file.attrs[name] = text
    with little_memory(), pytest.raises(InvalidCheckpointError, match="'w'"):
        load(path)


@few
@given(edits)
def test_any_change_of_an_hdf5_file(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    """Whatever is changed in an HDF5 file, it is read, or refused by an error of ours."""
    path = tmp_path / "x.mdl"
    path.write_bytes(edited((DATA / "weights_plain" / "local.mdl").read_bytes(), edits))
    found = look(path)
    assert found["load"] is None or isinstance(found["load"], InvalidCheckpointError)


# -- sharded -----------------------------------------------------------------------------------------------------------


def _terabytes(found: Metadata) -> None:
    size = torch.Size([2**45])
    reported_of_it: Any = found.state_dict_metadata["x"]
    reported_of_it.size = reported_of_it.chunks[0].sizes = size
    for index, place in found.storage_data.items():
        if index.fqn == "x":
            place.length = 2**48
            place.plain = (0, torch.float32, size, None)


def _deep(found: Metadata) -> None:
    found.planner_data = {"x": ("a",) * 100_000}


def _dimensions(found: Metadata) -> None:
    found.state_dict_metadata["x"].size = torch.Size([1] * 100_000)  # type: ignore[union-attr]


def _named(path: str) -> Callable[[Metadata], None]:
    def change(found: Metadata) -> None:
        for place in found.storage_data.values():
            place.relative_path = path

    return change


@pytest.mark.parametrize(
    "change",
    [_terabytes, _deep, _dimensions, _named("a\0b"), _named("a\x1b[31mb"), _named("x" * 10_000), _named(".metadata")],
    ids=["terabytes", "deep", "dimensions", "zero byte", "escape", "long", "itself"],
)
def test_manifests(tmp_path: Path, change: Callable[[Metadata], object]) -> None:
    """A manifest that lies of its tensors or shards is refused, and no memory is taken for what it claims."""
    folder = sharded(tmp_path / "x", change)
    with little_memory(), pytest.raises(InvalidCheckpointError):
        load(folder)


@pytest.mark.parametrize("data", [b"\x80\x02}r\xff\xff\xff\x7f.", b"(dp99999999999\n.", b"\x80\x04\x95" + b"\xff" * 8])
def test_numbers_in_a_manifest(tmp_path: Path, data: bytes) -> None:
    """A few bytes in a manifest do not have Python reserve gigabytes for what it is to remember."""
    (tmp_path / ".metadata").write_bytes(data)
    with little_memory(), pytest.raises(InvalidCheckpointError):
        load(tmp_path)


# -- YAML --------------------------------------------------------------------------------------------------------------

YAML = {
    "deep": ("[" * 5000, "nested too deeply"),
    "deep in blocks": ("".join(f"{' ' * n}a:\n" for n in range(1000)), "nested too deeply"),
    "holding itself": ("trainer: &a [*a]", "nested too deeply"),
    "large": ("#" * (MIB + 1), "has more than"),
    "digits": (f"a: {'9' * 10_000}", "is not a valid int"),
    "day": ("a: 2020-99-99", "is not a valid timestamp"),
    "day as a key": ("2020-99-99: 1", "is not a valid timestamp"),
    "time": ("a: !!timestamp x", "is not a valid timestamp"),
    "number": ("a: !!int abc", "is not a valid int"),
    "float": ("a: !!float x", "is not a valid float"),
    "truth": ("a: !!bool x", "is not a valid bool"),
    "set": ("a: !!set [1]", "expected a mapping"),
    "code": ("a: !!python/object/new:os.system [x]", "could not determine a constructor"),
    "name": ("!!python/name:os.system : 1", "could not determine a constructor"),
    "module": ("a: !!python/module:os", "could not determine a constructor"),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml(tmp_path: Path, case: str) -> None:
    """YAML that makes objects, is too large or too deep, or has invalid values is refused with its place."""
    text, said = YAML[case]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with little_memory(), pytest.raises(ConfigError) as caught:
        document.read(str(path))
    assert caught.value.reason.startswith(str(path))
    assert said in caught.value.reason
    assert len(str(caught.value)) < 1000


WORDS = ["a", "&a ", "*a", "- ", ": ", "\n", "  ", "[", "]", "{", "}", ",", "!!int ", "!!set ", "<<", "1", "|", ">"]
WORDS += ["'", '"', "? ", "#", "%", "---", "~", "0x", ".5", "2001-01-01", "=", "\t", "\\"]
words = st.sampled_from(WORDS)


def _read_any(folder: Path, text: str) -> None:
    path = folder / "x.yaml"
    path.write_text(text)
    with contextlib.suppress(ConfigError):
        document.read_yaml(str(path))


@few
@given(st.lists(words, max_size=25).map("".join))
def test_any_yaml(tmp_path: Path, text: str) -> None:
    """Any text is read, or refused by an error of ours."""
    _read_any(tmp_path, text)


@pytest.mark.long
@pytest.mark.timeout(3000)
@many
@given(st.lists(words, max_size=25).map("".join))
def test_any_yaml_at_length(tmp_path: Path, text: str) -> None:
    """The same, with other examples each time."""
    _read_any(tmp_path, text)
