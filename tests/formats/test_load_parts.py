"""Loads of a part of a checkpoint, loads into existing tensors, and descriptions of checkpoints."""

from __future__ import annotations

import copy
import gc
import tracemalloc
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
from checkpoints import MIB, Point, put, saved
from conftest import recorded_requests

from fsspec_csx.checkpoint.api import inspect, load, save
from fsspec_csx.errors import (
    CheckpointError,
    DtypeCastWarning,
    InvalidCheckpointError,
    MismatchError,
    MissingEntryError,
)
from fsspec_csx.formats.checkpoint_info import TensorInfo
from fsspec_csx.tensors import fill


def state() -> dict[str, Any]:
    """A model and its optimizer after a step, with numbers and texts."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 30)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7, "notes": ["a", ("b", 2.5)]}


def same(first: Any, second: Any) -> bool:
    """Equal in nesting, types and values."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            type(first) is type(second)
            and list(first) == list(second)
            and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and bool(first == second)


def zeroed(obj: Any) -> Any:
    """A copy with the same structure, and zeros for values."""
    made = copy.deepcopy(obj)
    for tensor in tensors(made):
        tensor.zero_()
    return made


def tensors(obj: Any) -> list[torch.Tensor]:
    """All tensors in dicts, lists and tuples."""
    if isinstance(obj, torch.Tensor):
        return [obj.detach()]
    inner = obj.values() if isinstance(obj, dict) else obj if isinstance(obj, (list, tuple)) else ()
    return [tensor for each in inner for tensor in tensors(each)]


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys(root: str) -> None:
    """Names choose entries, or all that is below them; the nesting stays, and so do the kinds of containers."""
    whole = state()
    save(whole, f"{root}/x.pt")
    part = load(f"{root}/x.pt", keys=["model.0", "optimizer.state.1.exp_avg", "notes.1", "step"])
    expected = {
        "model": OrderedDict((name, whole["model"][name]) for name in ("0.weight", "0.bias")),
        "optimizer": {"state": {1: {"exp_avg": whole["optimizer"]["state"][1]["exp_avg"]}}},
        "step": 7,
        "notes": [("b", 2.5)],
    }
    assert same(part, expected)
    assert part["model"]._metadata == whole["model"]._metadata


def test_function_of_names(root: str) -> None:
    """A function is called with the name of each entry."""
    whole = state()
    save(whole, f"{root}/x.pt")
    part = load(f"{root}/x.pt", keys=lambda name: name.endswith("bias"))
    assert same(part, {"model": OrderedDict((name, whole["model"][name]) for name in ("0.bias", "1.bias"))})


@pytest.mark.parametrize(
    ("obj", "keys", "part"),
    [
        ({"a": 1, "b": 2}, ["a", "b"], {"a": 1, "b": 2}),
        ({"a": 1}, [], {}),
        ([1, {"x": 2}], [], []),
        ({"a": {}, "b": []}, ["a"], {"a": {}}),
        ({"a.b": 1, "a": {"b": 2, "c": 3}}, ["a.b"], {"a.b": 1, "a": {"b": 2}}),
        ({1: {2: "x"}}, ["1.2"], {1: {2: "x"}}),
        ((1, 2, 3), ["0", "2"], (1, 3)),
        ({"a": torch.Size([1, 2])}, ["a"], {"a": torch.Size([1, 2])}),
    ],
)
def test_kinds_of_names(tmp_path: Path, obj: Any, keys: list[str], part: Any) -> None:
    """Numbers, dots within keys, empty containers, and nothing at all."""
    save(obj, tmp_path / "x.pt")
    assert same(load(tmp_path / "x.pt", keys=keys), part)


def test_an_object_that_holds_itself(tmp_path: Path) -> None:
    """A cycle is gone through once."""
    obj: dict[str, Any] = {"x": torch.ones(2)}
    obj["self"] = obj
    save(obj, tmp_path / "x.pt")
    assert torch.equal(load(tmp_path / "x.pt", keys=["x"])["x"], torch.ones(2))


def test_unknown_names(root: str) -> None:
    """A name that is not there is a KeyError and a ValueError that names the nearest ones."""
    save(state(), f"{root}/x.pt")
    with pytest.raises(KeyError) as caught:
        load(f"{root}/x.pt", keys=["model.0", "modle.1.wieght", "step.x"])
    assert isinstance(caught.value, MissingEntryError)
    assert isinstance(caught.value, ValueError)
    assert "has no 'modle.1.wieght', 'step.x'" in str(caught.value)
    assert "'model.1.weight'" in str(caught.value)


def test_a_single_str() -> None:
    """A str is not taken for a list of letters."""
    save({"a": 1}, "memory://parts/x.pt")
    with pytest.raises(TypeError, match=r"Pass \['a'\]"):
        load("memory://parts/x.pt", keys="a")


def test_only_what_is_chosen_is_read(environment: Any, bucket: str) -> None:
    """Of a large file, only the chosen tensors are fetched."""
    path = f"s3://{bucket}/x.pt"
    save({f"x{number}": torch.full((MIB,), float(number)) for number in range(8)}, path)
    seen = []

    own = fill.Source.read

    def noting(source: fill.Source, spans: Any, *, crc32: bool = False) -> list[int]:
        spans = list(spans)
        seen.append(sum(len(memory) for _, memory in spans))
        return own(source, spans, crc32=crc32)

    with pytest.MonkeyPatch.context() as patch, recorded_requests() as operations:
        patch.setattr(fill.Source, "read", noting)
        part = load(path, keys=["x3"])
    assert same(part, {"x3": torch.full((MIB,), 3.0)})
    assert 4 * MIB <= sum(seen) < 4 * MIB + 2 * MIB
    assert len(operations) < 6


@pytest.mark.parametrize("map_location", ["meta", {"cpu": "meta"}, torch.device("meta")], ids=str)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_keys_to_a_device(tmp_path: Path, map_location: Any, suffix: str) -> None:
    """What is chosen goes where map_location has it."""
    save({"a": torch.ones(3), "b": torch.ones(4), "e": torch.ones(0)}, tmp_path / f"x.{suffix}")
    part = load(tmp_path / f"x.{suffix}", keys=["a", "e"], map_location=map_location)
    assert {name: (tensor.device.type, tensor.shape) for name, tensor in part.items()} == {
        "a": ("meta", (3,)),
        "e": ("meta", (0,)),
    }


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_keys_and_a_callable(tmp_path: Path, suffix: str) -> None:
    """A callable map_location sees what is chosen, and nothing else."""
    save({"a": torch.ones(3), "b": torch.zeros(4)}, tmp_path / f"x.{suffix}")
    seen = []

    def map_location(storage: Any, location: str) -> Any:
        seen.append(bytes(storage))
        return storage

    part = load(tmp_path / f"x.{suffix}", keys=["a"], map_location=map_location)
    assert same(part, {"a": torch.ones(3)})
    assert seen == [bytes(torch.ones(3).untyped_storage())]


class Unknown:
    """A class that torch does not allow."""


def test_keys_beside_a_tensor_expanded_far(tmp_path: Path) -> None:
    """Of a file with an unknown class, and a tensor of more elements than bytes, all other entries can be read."""
    mask = torch.ones(1, dtype=torch.bool).expand(2**12, 2**13)
    torch.save({"mask": mask, "weight": torch.ones(3), "unknown": Unknown()}, tmp_path / "x.pt")
    assert same(load(tmp_path / "x.pt", keys=["weight"]), {"weight": torch.ones(3)})
    part = load(tmp_path / "x.pt", keys=["mask"])["mask"]
    assert (part.shape, part.stride(), part.untyped_storage().nbytes()) == (mask.shape, (0, 0), 1)
    assert [*inspect(tmp_path / "x.pt").tensors] == ["mask", "weight"]


def test_ties_and_views_of_a_part(root: str) -> None:
    """What is chosen comes with the memory that it shares."""
    base = torch.randn(100)
    save({"all": base, "row": base[10:20], "tied": base, "other": torch.ones(1)}, f"{root}/x.pt")
    part = load(f"{root}/x.pt", keys=["row", "tied"])
    assert torch.equal(part["row"], base[10:20])
    part["tied"].zero_()
    assert not part["row"].any()


def test_parts_of_files_that_are_read_whole(root: str) -> None:
    """A file of the old format, and one that may run code, are read whole; the part is the same."""
    path = put(root, saved({"a": torch.ones(2), "b": 1}, _use_new_zipfile_serialization=False))
    assert same(load(path, keys=["a"]), {"a": torch.ones(2)})
    path = put(root, saved({"a": torch.ones(2), "b": Point()}))
    assert same(load(path, keys=["a"], weights_only=False), {"a": torch.ones(2)})


# -- into --------------------------------------------------------------------------------------------------------------


def test_into(root: str) -> None:
    """Tensors are filled where they are, other values are replaced, and the object itself is returned."""
    whole = state()
    save(whole, f"{root}/x.pt")
    target = zeroed(whole)
    target.update(step=0, notes=["c"])
    places = [tensor.data_ptr() for tensor in tensors(target)]
    assert load(f"{root}/x.pt", into=target) is target
    assert same(target, whole)
    assert [tensor.data_ptr() for tensor in tensors(target)] == places


def test_into_a_live_model(root: str) -> None:
    """A model's own state dict, of Parameters, is filled as it stands."""
    model, twin = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    save(model.state_dict(keep_vars=True), f"{root}/x.pt")
    load(f"{root}/x.pt", into=twin.state_dict(keep_vars=True))
    assert torch.equal(twin.weight, model.weight)
    assert twin.weight.is_leaf
    assert twin.weight.requires_grad


LAYOUTS: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": lambda: torch.randn(60, 70),
    "transposed": lambda: torch.randn(70, 60).t(),
    "columns": lambda: torch.randn(60, 140)[:, ::2],
    "row of more": lambda: torch.randn(3, 60, 70)[1],
    "expanded": lambda: torch.randn(1, 70).expand(60, 70),
    "channels last": lambda: (
        torch.randn(1, 6, 10, 70).contiguous(memory_format=torch.channels_last).view(6, 10, 70).reshape(60, 70)
    ),
    "double": lambda: torch.randn(60, 70, dtype=torch.float64),
    "half": lambda: torch.randn(60, 70).half(),
    "complex": lambda: torch.randn(60, 70, dtype=torch.complex64),
    "conjugate": lambda: torch.randn(60, 70, dtype=torch.complex64).conj(),
    "negative": lambda: torch._neg_view(torch.randn(60, 70)),
}


@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
@pytest.mark.parametrize("piece", [64, 1000, fill.PIECE])
@pytest.mark.parametrize("theirs", LAYOUTS)
def test_layouts(theirs: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the strides and dtypes of both, what comes is what copy_ gives, in pieces of whatever size."""
    monkeypatch.setattr(fill, "PIECE", piece)
    monkeypatch.setattr(fill, "_STAGING", 2 * piece + 128)
    found = LAYOUTS[theirs]()
    path = put("memory://layouts", saved({"x": found, "y": torch.ones(2)}))
    for ours in LAYOUTS.keys() - {"expanded"}:
        target, expected = LAYOUTS[ours](), LAYOUTS[ours]()
        expected.copy_(found)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DtypeCastWarning)
            load(path, into={"x": target, "y": torch.zeros(2)})
        assert torch.equal(target, expected), ours


def test_other_dtypes_are_reported(root: str) -> None:
    """One warning says how many tensors were cast, from what to what, and how long it took."""
    save({"a": torch.ones(3), "b": torch.ones(2), "c": torch.ones(2), "d": torch.arange(3)}, f"{root}/x.pt")
    target = {"a": torch.zeros(3).half(), "b": torch.zeros(2).half(), "c": torch.zeros(2), "d": torch.zeros(3)}
    with pytest.warns(DtypeCastWarning) as caught:
        load(f"{root}/x.pt", into=target)
    (warning,) = caught
    assert "2 from torch.float32 to torch.float16, 1 from torch.int64 to torch.float32" in str(warning.message)
    assert warning.filename == __file__
    assert same(list(target.values()), [torch.ones(3).half(), torch.ones(2).half(), torch.ones(2), torch.arange(3.0)])


def test_into_ties(root: str) -> None:
    """Tied tensors, and views of each other, are filled once and stay so."""
    base = torch.randn(100)
    save({"all": base, "row": base[10:20], "tied": base}, f"{root}/x.pt")
    memory = torch.zeros(100)
    load(f"{root}/x.pt", into={"all": memory, "row": memory[10:20], "tied": memory})
    assert torch.equal(memory, base)


def test_into_what_only_the_object_ties(root: str) -> None:
    """Where tensors of the object share memory that was not shared when saved, one of them wins as a whole."""
    save({"a": torch.full((100_000,), 1.0), "b": torch.full((100_000,), 2.0)}, f"{root}/x.pt")
    memory = torch.zeros(100_000)
    load(f"{root}/x.pt", into={"a": memory, "b": memory})
    assert memory.unique().numel() == 1
    assert memory[0] in (1, 2)


def test_into_parts_of_a_storage(root: str) -> None:
    """Tensors that were saved as parts of one memory go to memories of their own."""
    base = torch.randn(1000)
    save({"a": base[:300], "b": base[500:], "m": base[100:900].view(80, 10).t()}, f"{root}/x.pt")
    target = {"a": torch.zeros(300), "b": torch.zeros(500), "m": torch.zeros(10, 80)}
    load(f"{root}/x.pt", into=target)
    assert same(target, {"a": base[:300], "b": base[500:], "m": base[100:900].view(80, 10).t().contiguous()})


def test_into_with_keys(root: str) -> None:
    """With keys only the selected entries are filled, and the object may have more."""
    whole = state()
    save(whole, f"{root}/x.pt")
    target = zeroed(whole)
    target["more"] = torch.zeros(1)
    target["notes"] = ["c", ("d", 0.0)]
    target["step"] = 0
    load(f"{root}/x.pt", into=target, keys=["model.1", "notes.0"])
    assert torch.equal(target["model"]["1.weight"], whole["model"]["1.weight"])
    assert not target["model"]["0.weight"].any()
    assert target["notes"] == ["a", ("d", 0.0)]
    assert target["step"] == 0


def test_all_that_does_not_fit(root: str) -> None:
    """One error lists all that is missing, unexpected and different, before anything is changed."""
    save({"a": torch.ones(2), "b": {"c": torch.ones(3), "d": 1}, "e": torch.ones(1), "f": 2}, f"{root}/x.pt")
    target = {"a": torch.zeros(2), "b": {"c": torch.zeros(4), "g": torch.zeros(1)}, "e": 5, "h": [1, torch.zeros(1)]}
    with pytest.raises(MismatchError) as caught:
        load(f"{root}/x.pt", into=target)
    message = str(caught.value)
    assert "lacks 'b.g', 'h.0', 'h.1'" in message
    assert "has 'b.d', 'f', which the object lacks" in message
    assert "'b.c' (shape (3,) in the file, shape (4,) to fill)" in message
    assert "'e' (shape (1,) in the file, a int to fill)" in message
    assert not target["a"].any()  # type: ignore[attr-defined]


def test_unexpected_keys_when_chosen(root: str) -> None:
    """With keys, each selected entry must exist in the object."""
    save({"a": torch.ones(2), "b": torch.ones(2)}, f"{root}/x.pt")
    with pytest.raises(MismatchError, match="has 'b', which"):
        load(f"{root}/x.pt", into={"a": torch.zeros(2)}, keys=["a", "b"])


@pytest.mark.parametrize("target", [torch.zeros(2), "text", 5, (torch.zeros(2),)], ids=lambda each: type(each).__name__)
def test_into_what_cannot_be_filled(target: Any) -> None:
    """What is no mapping and no list is a TypeError."""
    save([torch.ones(2)], "memory://parts/y.pt")
    with pytest.raises(TypeError, match="cannot be loaded into a"):
        load("memory://parts/y.pt", into=target)


def test_values_in_tuples(tmp_path: Path) -> None:
    """A value in a tuple, which cannot be replaced, must be the same."""
    save({"x": (torch.ones(1), 1)}, tmp_path / "x.pt")
    target = {"x": (torch.zeros(1), 1)}
    load(tmp_path / "x.pt", into=target)
    assert same(target, {"x": (torch.ones(1), 1)})
    with pytest.raises(MismatchError, match=r"'x\.1' \(in a tuple"):
        load(tmp_path / "x.pt", into={"x": (torch.zeros(1), 2)})


def test_into_names_what_is_damaged(root: str) -> None:
    """A flipped bit is found and named, also in what is only a part of what was saved with it."""
    base = torch.full((1000,), 3.0)
    data = saved({"model": {"part": base[10:20], "cast": torch.full((500,), 5.0)}})
    for value, name in ((3.0, "model.part"), (5.0, "model.cast")):
        flipped = bytearray(data)
        flipped[data.index(torch.full((8,), value).numpy().tobytes()) + 3] ^= 1
        with pytest.raises(InvalidCheckpointError, match=name):
            load(put(root, bytes(flipped)), into={"model": {"part": torch.ones(10), "cast": torch.ones(500).half()}})


def test_into_from_files_that_are_read_whole(root: str) -> None:
    """A file of the old format fills as well."""
    path = put(root, saved({"a": torch.ones(2), "b": [1]}, _use_new_zipfile_serialization=False))
    assert same(load(path, into={"a": torch.zeros(2), "b": []}), {"a": torch.ones(2), "b": [1]})


def test_into_from_safetensors(root: str) -> None:
    """So does a safetensors file."""
    save({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}, f"{root}/x.safetensors")
    target = {"a": torch.zeros(3, 2).t(), "b": torch.zeros(2)}
    load(f"{root}/x.safetensors", into=target)
    assert same(target, {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)})


def resident() -> int:
    """The highest memory use of this process so far, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


@pytest.mark.slow
def test_into_takes_little_memory(tmp_path: Path) -> None:
    """Casting 160 MiB takes no more than the staging memory."""
    save({f"x{number}": torch.ones(10 * MIB) for number in range(4)}, tmp_path / "x.pt")
    gc.collect()
    target = {f"x{number}": torch.zeros(10 * MIB, dtype=torch.bfloat16) for number in range(4)}
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    with pytest.warns(DtypeCastWarning):
        load(tmp_path / "x.pt", into=target)
    assert resident() - before < 64 * MIB
    assert all(bool((tensor == 1).all()) for tensor in target.values())


def test_python_memory_of_a_part(tmp_path: Path) -> None:
    """A part takes no memory beside its own."""
    save({f"x{number}": torch.ones(MIB) for number in range(16)}, tmp_path / "x.pt")
    tracemalloc.start()
    try:
        load(tmp_path / "x.pt", keys=["x1"])
        assert tracemalloc.get_traced_memory()[1] < 6 * MIB
    finally:
        tracemalloc.stop()


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_inspect(root: str) -> None:
    """What a checkpoint holds is reported by dotted names, and its size."""
    save({"model": {"w": torch.ones(2, 3).bfloat16()}, "step": 3, "names": ["a"]}, f"{root}/x.pt")
    info = inspect(f"{root}/x.pt")
    assert (info.path, info.format) == (f"{root}/x.pt", "torch")
    assert info.tensors == {"model.w": TensorInfo(torch.bfloat16, (2, 3), 12)}
    assert info.values == {"step": 3, "names.0": "a"}
    assert info.size > 12


def test_inspect_safetensors(root: str) -> None:
    """So of a safetensors file."""
    save({"w": torch.ones(2, 3)}, f"{root}/x.safetensors")
    info = inspect(f"{root}/x.safetensors")
    assert (info.format, info.tensors) == ("safetensors", {"w": TensorInfo(torch.float32, (2, 3), 24)})


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_inspect_reads_little(environment: Any, bucket: str, suffix: str) -> None:
    """However large the file, a few requests do."""
    save({"x": torch.zeros(16 * MIB)}, f"s3://{bucket}/x.{suffix}")
    with recorded_requests() as operations:
        inspect(f"s3://{bucket}/x.{suffix}")
    assert len(operations) <= 5


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, of its own doings
def test_inspect_what_is_read_whole(root: str) -> None:
    """Files of the old format, and of tensors that torch must see, are named too."""
    quantized = torch.quantize_per_tensor(torch.randn(5), scale=0.1, zero_point=3, dtype=torch.qint8)
    info = inspect(put(root, saved({"q": quantized, "s": torch.eye(3).to_sparse()})))
    assert info.tensors == {"q": TensorInfo(torch.qint8, (5,), 5), "s": TensorInfo(torch.float32, (3, 3), 36)}
    info = inspect(put(root, saved({"w": torch.ones(3)}, _use_new_zipfile_serialization=False)))
    assert info.tensors == {"w": TensorInfo(torch.float32, (3,), 12)}


def test_inspect_what_is_no_checkpoint(root: str) -> None:
    """Errors are those of load."""
    with pytest.raises(CheckpointError, match="is text"):
        inspect(put(root, b"some text that is no checkpoint"))
    with pytest.raises(FileNotFoundError):
        inspect(f"{root}/nothing.pt")


# -- safetensors -------------------------------------------------------------------------------------------------------


def test_safetensors(root: str) -> None:
    """A name that ends in .safetensors is saved in that format, which the safetensors package reads."""
    tensors_of = {"a": torch.arange(5), "b": torch.randn(300, 300)}
    save(tensors_of, f"{root}/x.safetensors")
    with fsspec.open(f"{root}/x.safetensors") as file:
        assert same(dict(sorted(safetensors.torch.load(file.read()).items())), tensors_of)
    assert same(load(f"{root}/x.safetensors"), tensors_of)


def test_format_is_reported_by_content(root: str) -> None:
    """A file is what it holds, whatever its name."""
    assert same(load(put(root, safetensors.torch.save({"a": torch.ones(2)}))), {"a": torch.ones(2)})
    with fsspec.open(f"{root}/y.safetensors", "wb") as file:
        file.write(saved([1]))
    assert load(f"{root}/y.safetensors") == [1]
