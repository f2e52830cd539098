"""What save accepts, load returns: each kind of tensor and value, in each format, by each function that writes it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp

from fsspec_csx import async_save, distributed, inspect, load, save
from fsspec_csx.errors import CheckpointError, UnsafeCheckpointError
from fsspec_csx.manage.convert import convert
from fsspec_csx.tensors import names
from fsspec_csx.testing.conformance import FormatConformance
from fsspec_csx.testing.example_values import KINDS, TENSORS, of_dtype, plain, same

pytestmark = pytest.mark.adaptive

NOT_DENSE = {"sparse", "sparse rows", "quantized", "quantized per channel", "nested", "jagged"}
NOT_PLAIN = {*NOT_DENSE, "without data", "a subclass", "a parameter without a shape"}
TOO_DEEP = {"too deeply nested"}
AMBIGUOUS = {"keys of one text", "a dotted clash"}


def loaded(path: str) -> Any:
    """What load returns; with ``weights_only=False`` where it requires that."""
    try:
        return load(path)
    except UnsafeCheckpointError:
        return load(path, weights_only=False)


def as_sharded(state: Any) -> Any:
    """What a sharded checkpoint keeps of a state dict."""
    return plain(state, dicts=True)


def flat(state: Any) -> Any:
    """What a safetensors file keeps of a state dict that is converted."""
    return {name: value for name, value in names.walk(plain(state)) if isinstance(value, torch.Tensor)}


def converted(format: str, **options: Any) -> Callable[[Any, str], object]:
    """Saves by way of a torch file of torch's own."""

    def by_file(state: Any, path: str) -> object:
        with fsspec.open("memory://conformance/source.mdl", "wb") as file:
            torch.save(state, file)
        return convert("memory://conformance/source.mdl", path, format=format, overwrite=True, **options)

    return by_file


def planned_by_torch(state: Any, path: str) -> None:
    """Saves as torch's own dcp.save with its default planner, into our storage."""
    try:
        dcp.save(state, storage_writer=distributed.StorageWriter(path))
    except dcp.CheckpointException as error:
        (failure,) = error.failures.values()
        raise failure[0] from error


UNKNOWN = {"a class", "a NumPy array", "a NumPy number", "a NumPy integer", "a subclass", "a parameter without a shape"}
PLAIN_TENSORS = {name: make for name, make in TENSORS.items() if name not in ("views of one storage", "tied")}
NO_TEXT = {"a tuple as a key", "keys of other types"}
SAFETENSORS = {*NOT_PLAIN, "complex32", "complex128"}
WAYS = {
    "torch": FormatConformance(save, loaded, "x.mdl", lambda state: state, TOO_DEEP),
    "async torch": FormatConformance(
        lambda state, path: async_save(state, path).result(), loaded, "x.mdl", lambda state: state, TOO_DEEP
    ),
    "safetensors": FormatConformance(save, loaded, "x.safetensors", plain, SAFETENSORS, PLAIN_TENSORS),
    "async safetensors": FormatConformance(
        lambda state, path: async_save(state, path).result(), loaded, "x.safetensors", plain, SAFETENSORS, PLAIN_TENSORS
    ),
    "huggingface": FormatConformance(
        lambda state, path, **options: save(state, path, format="huggingface", **options),
        loaded,
        "x",
        plain,
        SAFETENSORS,
        PLAIN_TENSORS,
    ),
    "async huggingface": FormatConformance(
        lambda state, path: async_save(state, path, format="huggingface").result(),
        loaded,
        "x",
        plain,
        SAFETENSORS,
        PLAIN_TENSORS,
    ),
    "distributed": FormatConformance(
        distributed.save, loaded, "x", as_sharded, {*NOT_PLAIN, *TOO_DEEP, *AMBIGUOUS, *NO_TEXT}
    ),
    "dcp": FormatConformance(
        planned_by_torch,
        loaded,
        "x",
        as_sharded,
        NOT_DENSE - {"nested", "jagged"},
        {name: TENSORS[name] for name in (*NOT_DENSE - {"nested", "jagged"}, "float32", "transposed")},
    ),
    "to torch": FormatConformance(converted("torch"), loaded, "x.mdl", lambda state: state, {*UNKNOWN, *TOO_DEEP}),
    "to safetensors": FormatConformance(
        converted("safetensors", drop_values=True),
        loaded,
        "x.safetensors",
        flat,
        {
            *NOT_DENSE,
            "without data",
            "complex32",
            "complex128",
            *AMBIGUOUS,
            *TOO_DEEP,
            "a key of half a surrogate pair",
        },
        {name: make for name, make in KINDS.items() if name not in UNKNOWN},
    ),
    "to huggingface": FormatConformance(
        converted("huggingface", drop_values=True),
        loaded,
        "x",
        flat,
        {
            *NOT_DENSE,
            "without data",
            "complex32",
            "complex128",
            *AMBIGUOUS,
            *TOO_DEEP,
            "a key of half a surrogate pair",
        },
        {name: make for name, make in KINDS.items() if name not in UNKNOWN},
    ),
    "to distributed": FormatConformance(
        converted("distributed"), loaded, "x", as_sharded, {*NOT_PLAIN, *UNKNOWN, *TOO_DEEP, *AMBIGUOUS, *NO_TEXT}
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", WAYS)
def test_what_is_saved_is_loaded(tmp_path: Path, name: str) -> None:
    """Each kind comes back the same, or is refused by the name of the entry, with nothing left behind."""
    WAYS[name].check_kinds(str(tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name", ["torch", "safetensors", "huggingface", "distributed", "to safetensors", "to distributed"]
)
def test_what_is_refused_leaves_the_old_one(root: str, name: str) -> None:
    """A checkpoint that is there stays, and nothing lies beside it, when the next one is refused."""
    way = replace(WAYS[name], kinds={kind: KINDS[kind] for kind in ("sparse", "without data")})
    way.check_refused(f"{root}/folder")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["torch", "safetensors", "huggingface", "distributed"])
def test_what_is_interrupted_leaves_the_old_one(root: str, name: str) -> None:
    """A checkpoint that is there stays, and nothing lies beside it, when the next save fails on the way."""
    WAYS[name].check_interrupted(f"{root}/folder")


def test_async_save_refuses_at_once(tmp_path: Path) -> None:
    """What cannot be saved is said before async_save returns, and no folder is made."""
    for state in ({"it": KINDS["sparse"]()}, {"it": "text"}, {"it": KINDS["a subclass"]()}, ["no mapping"]):
        with pytest.raises(ValueError, match="safetensors file"):
            async_save(state, tmp_path / "folder" / "x.safetensors")
    with pytest.raises(ValueError, match="nested deeper"):
        async_save({"it": KINDS["too deeply nested"]()}, tmp_path / "folder" / "x.mdl")
    assert list(tmp_path.glob("folder*")) == []


CEREBRAS = {
    *NOT_PLAIN,
    *("complex32", "complex64", "complex128", "uint16", "uint32", "uint64"),
    *("conjugated", "complex", "bytes", "a bytearray", "a set", "a class", "a very long int"),
    *("a torch.Size", "a torch.dtype", "a torch.device", "a NumPy number", "a NumPy integer"),
    *("a tuple as a key", "a dotted clash", "keys of one text", "a key of half a surrogate pair"),
    *(name for name in KINDS if name.startswith(("float8", "float4"))),
    *TOO_DEEP,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("environment")
def test_cerebras(bucket: str) -> None:
    """The same of Cerebras checkpoints, which are objects on S3, and of some kinds that are converted to them."""
    way = FormatConformance(lambda state, path: save(state, path, format="cerebras"), loaded, "x", plain, CEREBRAS)
    some = {*UNKNOWN, "sparse", "float32", "tied", "an optimizer", "a dotted clash", "a very long int", "empty dicts"}
    into = FormatConformance(
        converted("cerebras"), loaded, "x", plain, {*CEREBRAS, *UNKNOWN}, {name: KINDS[name] for name in some}
    )
    wrong = [f"{kind}: {flaw}" for kind in way.kinds for flaw in way.flaws(kind, f"s3://{bucket}/save")]
    wrong += [f"{kind}: {flaw}" for kind in into.kinds for flaw in into.flaws(kind, f"s3://{bucket}/convert")]
    assert wrong == []


MODEL = {
    "model.weight": torch.arange(6.0).reshape(2, 3),
    "model.bias": of_dtype(torch.bfloat16),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "none": torch.empty(0, 3),
}


@pytest.mark.usefixtures("environment")
def test_each_format_to_each(tmp_path: Path, bucket: str) -> None:
    """Tensors that all formats hold go from each to each."""
    formats = {"torch": ".mdl", "safetensors": ".safetensors", "distributed": "", "cerebras": ""}

    def path(*parts: str) -> str:
        root = f"s3://{bucket}" if parts[-1] == "cerebras" else str(tmp_path)
        return f"{root}/{'-'.join(parts)}{formats[parts[-1]]}"

    for format in formats:
        convert_from = f"{tmp_path}/first.mdl"
        torch.save(MODEL, convert_from)
        convert(convert_from, path(format), format=format)
    for first, second in itertools.product(formats, formats):
        convert(path(first), path(first, second), format=second)
        assert same(dict(load(path(first, second))), MODEL), (first, second)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_a_sharded_checkpoint_holds_is_converted(tmp_path: Path) -> None:
    """What a sharded checkpoint holds goes to a torch file and to another folder, as load gives it."""
    wrong = []
    for name, make in KINDS.items():
        if name in WAYS["distributed"].refused | UNKNOWN | {"a very long int"}:
            continue
        folder = f"{tmp_path}/{abs(hash(name))}"
        distributed.save({"it": make(), "w": torch.ones(1)}, folder)
        for format in ("torch", "distributed"):
            convert(folder, f"{folder}.{format}", format=format)
            wrong += [] if same(load(f"{folder}.{format}"), load(folder)) else [f"{name} to {format}"]
    assert wrong == []


def test_values_of_distributed_are_trusted_by_choice(tmp_path: Path) -> None:
    """A value of any class is loaded by whole where the caller trusts it."""
    distributed.save({"it": KINDS["a class"](), "w": torch.ones(1)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        distributed.whole(tmp_path / "x")
    assert repr(inspect(tmp_path / "x").values["it"]) == "<argparse.Namespace, not loaded>"
    found: Mapping[str, Any] = distributed.whole(tmp_path / "x", weights_only=False)
    assert found["it"] == KINDS["a class"]()
    assert same(distributed.whole(tmp_path / "x", keys=["w"]), {"w": torch.ones(1)})


def test_files_in_memory_are_values_of_distributed(tmp_path: Path) -> None:
    """An io.BytesIO, as DCP has for what is pickled, needs no trust."""
    file = io.BytesIO(b"0123")
    file.seek(2)
    distributed.save({"it": file, "w": torch.ones(1)}, tmp_path / "x")
    found = distributed.whole(tmp_path / "x")["it"]
    assert (type(found), found.getvalue(), found.tell()) == (io.BytesIO, b"0123", 2)


def test_what_distributed_cannot_size(tmp_path: Path) -> None:
    """A dtype whose size torch's planner does not know, and an object that is no dict, are refused by name."""
    with pytest.raises(ValueError, match=r"'w'.*bits8"):
        distributed.save({"w": torch.zeros(4, dtype=torch.uint8).view(torch.bits8)}, tmp_path / "x")
    for obj in (None, [torch.ones(1)], torch.ones(1), torch.nn.Linear(1, 1)):
        with pytest.raises(TypeError, match=f"a dict, not a {type(obj).__name__}"):
            distributed.save(obj, tmp_path / "x")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
