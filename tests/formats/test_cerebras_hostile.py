"""Malicious Cerebras checkpoints: none runs code, leads out of its folder, or takes memory beyond its size."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from cerebras import DATA, changed, metadata, objects, report

from fsspec_csx.checkpoint.api import inspect, load
from fsspec_csx.errors import CheckpointError, InvalidCheckpointError, UnsafeCheckpointError
from fsspec_csx.formats.cerebras import folder as cerebras_folder
from fsspec_csx.formats.cerebras.metadata import decoded, encoded


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def checkpoint(folder: Path, data: bytes) -> Path:
    """A checkpoint with this metadata."""
    folder.mkdir()
    (folder / "__METADATA__").write_bytes(data)
    return folder


@pytest.mark.parametrize("protocol", range(6))
def test_metadata_that_runs_code(tmp_path: Path, protocol: int) -> None:
    """Metadata that would run code is refused, and does not."""
    marker = tmp_path / "marker"
    data = pickle.dumps({**metadata("bf16"), "more": Runs(marker)}, protocol)
    folder = checkpoint(tmp_path / "x", data)
    for look in (load, inspect):
        with pytest.raises(UnsafeCheckpointError, match="may run code"):
            look(folder)
    with pytest.raises(UnsafeCheckpointError):
        load(folder, weights_only=False)
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cos\nsystem\n.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x82\x01.",
        b"\x83\x01\x00.",
        b"\x84\x01\x00\x00\x00.",
        b"Pname\n.",
        b"}Q.",
        b"}}b.",
        b"}(R.",
        b"}}\x81.",
        b"\x80\x05\x97.",
    ],
    ids=["GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "BUILD", "REDUCE", "NEWOBJ",
         "NEXT_BUFFER"],
)  # fmt: skip
def test_opcodes_that_run_code(opcodes: bytes) -> None:
    """Every opcode by which a pickle looks something up, calls it, or takes it from outside is refused."""
    with pytest.raises(UnsafeCheckpointError, match="opcode"):
        decoded(opcodes, name="x.mdl")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"}",
        b"\x80\x04}q\x00",
        b"].",
        b"(lp0\n.",
        b"}]X\x01\x00\x00\x00as.",
        b"}X\x01\x00\x00\x00a}s.",
        b"}K\x01K\x02s.",
        b"h\x07.",
        b"}(X\x01\x00\x00\x00au.",
        b"0.",
        b"\xff",
        b"}}.",
        b"X\x01\x00\x00\x00a.",
        b"\x8b\xff\xff\xff\x7f\x01.",
        b"\x8b\xff\xff\xff\xff\x01.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"B\xff\xff\xff\x7fabc.",
        b"}r\xff\xff\xff\x7fX\x01\x00\x00\x00aj\xff\xff\xff\x7fs.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"}(" + b"".join(b"\x8a\x09" + bytes(8) + bytes([number]) + b"N" for number in range(1, 100)) + b"u.",
        b"]" * 100_000 + b"a" * 99_999 + b".",
        b"(" * 100_000 + b"d" * 99_999 + b".",
    ],
)
def test_nonsense(data: bytes) -> None:
    """What is cut short, claims more than there is, or is nested deeply, is an error, and takes no memory."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidCheckpointError, match="is damaged: "):
            decoded(data, name="x.mdl")
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_any_damage_to_metadata() -> None:
    """Any bytes changed in real metadata give plain values, or an error of ours."""
    dice = random.Random(1)
    refused = 0
    for _ in range(200):
        whole = bytearray(objects("tied")["__METADATA__"])
        for _ in range(dice.randint(1, 4)):
            whole[dice.randrange(len(whole))] = dice.randrange(256)
        try:
            found = decoded(bytes(whole), name="x.mdl")
        except CheckpointError:
            refused += 1
        else:
            assert {type(value) for value in found.values()} <= {str, bool, int, float, type(None)}
    assert 0 < refused < 200


def test_metadata_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata that is larger than any real one is not read."""
    monkeypatch.setattr(cerebras_folder, "LARGEST", 100)
    with pytest.raises(InvalidCheckpointError, match="more than 100"):
        load(changed(tmp_path / "x", "bf16"))


def test_body_that_runs_code(tmp_path: Path) -> None:
    """A pickle among the objects is named and not touched."""
    marker = tmp_path / "marker"
    folder = changed(tmp_path / "x", "tied")
    body = pickle.dumps(Runs(marker))
    (folder / "same_obj").write_bytes(body)
    with pytest.raises(UnsafeCheckpointError, match=r"'same_obj', 'same_obj2'"):
        load(folder)
    inspect(folder)
    load(folder, keys=["emb", "head"])
    assert not marker.exists()


def test_tensor_whose_body_is_a_pickle(tmp_path: Path) -> None:
    """The bytes of a tensor are the bytes of a tensor, whatever they may be to others."""
    marker = tmp_path / "marker"
    body = pickle.dumps(Runs(marker)).ljust(1122, b"\0")
    folder = changed(tmp_path / "x", "bf16")
    (folder / "layer.weight").write_bytes(body)
    found = load(folder)["layer.weight"]
    assert bytes(found.view(torch.uint8).flatten().tolist()) == body
    assert not marker.exists()


@pytest.mark.parametrize("key", ["../secret", "a/../../secret", "/secret", "a//b", ".", "w/.", "\0", "__METADATA__"])
def test_names_that_leave_the_folder(tmp_path: Path, key: str) -> None:
    """No name of a value leads out of the folder."""
    (tmp_path / "secret").write_bytes(b"\0" * 16384)
    report = metadata("weights_plain")
    text = report["w.__metadata__"].replace('"w"', json.dumps(key)).replace('"w.__', json.dumps(f"{key}.__")[:-1])
    spec = json.loads(report["__spec__"])
    spec[1] = spec[1].replace('\\"w\\"', json.dumps(json.dumps(key))[1:-1])
    entries = {"__spec__": json.dumps(spec), f"{key}.__metadata__": text, "w.__metadata__": None}
    folder = changed(tmp_path / "x", "weights_plain", **entries)
    with pytest.raises(InvalidCheckpointError, match="no name of an object"):
        load(folder)


@pytest.mark.parametrize(
    "context",
    [
        {"default_factory_module": "os", "default_factory_name": "getcwd", "dict_context": ["a"]},
        {"default_factory_module": "builtins", "default_factory_name": "eval", "dict_context": ["a"]},
        {"default_factory_module": ["os"], "default_factory_name": "list", "dict_context": ["a"]},
    ],
)
def test_factory_of_a_container(tmp_path: Path, context: dict[str, Any]) -> None:
    """A container's type of default values is a plain one, and nothing is imported for it."""
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}
    data = encoded({"__spec__": json.dumps([{}, json.dumps([1, spec])]), "__version__": 0.5, "__SUCCESS__": True})
    with pytest.raises(InvalidCheckpointError, match="__spec__"):
        load(checkpoint(tmp_path / "x", data))


def nested(depth: int) -> str:
    """The specification of so many lists within each other."""
    leaf = '{"type": null, "context": null, "children_spec": []}'
    before = '{"type": "builtins.list", "context": "null", "children_spec": ['
    return json.dumps([[], f"[1, {before * depth}{leaf}{']}' * depth}]"])


@pytest.mark.parametrize(
    "spec",
    [
        nested(200),
        nested(100_000),
        "[" * 100_000,
        "1",
        "[]",
        '["*", "[2, {}]"]',
        '["*", "[1, {}]"]',
        json.dumps([[], json.dumps([1, {"type": "os.system", "context": "[]", "children_spec": []}])]),
        json.dumps([[], json.dumps([1, {"type": "builtins.dict", "context": '[["a"]]', "children_spec": [1]}])]),
        json.dumps([[], json.dumps([1, {"type": "builtins.dict", "context": '["a", "a"]', "children_spec": [1, 2]}])]),
        json.dumps([[], json.dumps([1, {"type": "builtins.dict", "context": '["a"]', "children_spec": [1, 2]}])]),
        None,
        7,
    ],
)
def test_nesting_that_is_none(tmp_path: Path, spec: Any) -> None:
    """A nesting that is too deep, unknown or no nesting at all is an error of ours."""
    data = encoded({"__spec__": spec, "__version__": 0.5, "__SUCCESS__": True})
    with pytest.raises(InvalidCheckpointError, match="is damaged: "):
        load(checkpoint(tmp_path / "x", data))


@pytest.mark.parametrize(
    "entries",
    [
        {"shapes": [[2**62, 2**62]]},
        {"shapes": [[-1, 64]]},
        {"shapes": [[0, 2**63]], "__NUMPY__": {"shape": [0, 2**63], "dtype": "float32"}},
        {"shapes": [[64, 65]]},
        {"shapes": [[64.0, 64]]},
        {"shapes": []},
        {"shapes": 3},
        {"dtypes": ["torch.load"]},
        {"dtypes": ["torch.float64"]},
        {"__NUMPY__": {"shape": [64, 64], "dtype": "object"}},
        {"__NUMPY__": True},
        {"data_sizes": [1]},
        {"boundaries": [1]},
        {"boundaries": [-1], "compressed": True},
        {"__TYPE__": "LinkedObject", "key": "w"},
        {"__TYPE__": "LinkedObject", "key": "nothing"},
        {"__TYPE__": "LinkedObject", "key": ["w"]},
        {"__TYPE__": "ScalarSerializer", "scalar_value": {"a": 1}},
        {"__TYPE__": "StringSerializer"},
        {"__TYPE__": "DeferredFullTensor", "shape": [2**40, 2**40], "dtype": "torch.float32", "fill_value": 1},
        {"__TYPE__": ["a"]},
    ],
)
def test_value_that_contradicts_itself(tmp_path: Path, entries: dict[str, Any]) -> None:
    """What is stored for a value must fit together, before any memory is taken for it."""
    folder = changed(tmp_path / "x", "weights_plain", **report("weights_plain", "w", **entries))
    with pytest.raises(InvalidCheckpointError):
        load(folder)


def test_frame_that_holds_more(tmp_path: Path) -> None:
    """A compressed body that is larger, smaller or other than its metadata says is refused, and not unpacked."""
    from backports import zstd

    bomb = zstd.compress(bytes(512 * 2**20))
    assert len(bomb) < 100_000
    for body in (bomb, zstd.compress(bytes(16383)), bomb[:-5], b"no frame", zstd.compress(bytes(16384)) * 2):
        stored = {"boundaries": [len(body)]}
        folder = changed(tmp_path / "x", "weights_compressed", **report("weights_compressed", "w", **stored))
        (folder / "w").write_bytes(body)
        tracemalloc.start()
        with pytest.raises(InvalidCheckpointError, match="'w' is not one zstd frame of the 16384 bytes"):
            load(folder)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
        tracemalloc.stop()


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def hdf5(path: Path, case: str = "weights_plain") -> h5py.File:
    """A copy of a case's HDF5 file, open to be changed."""
    path.write_bytes((DATA / case / "local.mdl").read_bytes())
    return h5py.File(path, "r+")


def test_hdf5_that_leads_elsewhere(tmp_path: Path) -> None:
    """What lies in other files, by links, virtual datasets or external storage, is not read."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 16384)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["w"] = h5py.Empty("f4")
    path = tmp_path / "x.mdl"
    for number in range(4):
        with hdf5(path) as file:
            del file["w"]
            if number == 0:
                file["w"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "w")
            elif number == 1:
                file["w"] = h5py.SoftLink("/z")
            elif number == 2:
                file.create_dataset("w", (64, 64), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
            else:
                layout = h5py.VirtualLayout((64, 64), "f4")
                layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "w", (64, 64))
                file.create_virtual_dataset("w", layout)
        with pytest.raises(InvalidCheckpointError, match="'w'"):
            load(path)


def test_hdf5_that_runs_code(tmp_path: Path) -> None:
    """A pickle in an attribute is named and not touched."""
    marker = tmp_path / "marker"
    path = tmp_path / "x.mdl"
    with hdf5(path, "tied") as file:
        body = pickle.dumps(Runs(marker))
        file["same_obj"].attrs["__BYTES__"] = memoryview(body).cast("c")
    with pytest.raises(UnsafeCheckpointError, match="same_obj"):
        load(path)
    inspect(path)
    load(path, keys=["emb"])
    assert not marker.exists()


@pytest.mark.parametrize("size", [8, 100, 2048, 20000])
def test_hdf5_cut_short(tmp_path: Path, size: int) -> None:
    """A file that is cut short is an error of ours."""
    (tmp_path / "x.mdl").write_bytes((DATA / "weights_plain" / "local.mdl").read_bytes()[:size])
    with pytest.raises(InvalidCheckpointError, match="is an HDF5 file that h5py cannot read"):
        load(tmp_path / "x.mdl")


def test_hdf5_of_something_else(tmp_path: Path) -> None:
    """An HDF5 file that is no checkpoint is distinguished from one that is not finished."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = [1, 2]
    with pytest.raises(InvalidCheckpointError, match="not a checkpoint"):
        load(tmp_path / "x.h5")
    with hdf5(tmp_path / "x.mdl") as file:
        del file.attrs["__SUCCESS__"]
    with pytest.raises(InvalidCheckpointError, match="not finished"):
        load(tmp_path / "x.mdl")


def test_extension_registry(tmp_path: Path) -> None:
    """Codes that this process has for its own classes do nothing in a checkpoint."""
    import copyreg

    copyreg.add_extension("os", "mkdir", 240)
    try:
        data = b"\x82" + struct.pack("B", 240) + b"."
        assert pickle.loads(data) is os.mkdir
        with pytest.raises(UnsafeCheckpointError, match="EXT1"):
            decoded(data, name="x.mdl")
    finally:
        copyreg.remove_extension("os", "mkdir", 240)
        copyreg.clear_extension_cache()
