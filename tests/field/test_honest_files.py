"""A file that torch.save wrote and torch.load reads with weights_only=True is never reported as damaged."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fsspec_csx
from fsspec_csx.errors import CheckpointError, CheckpointLimitError, InvalidCheckpointError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated", "ignore:.*quant", "ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:ComplexHalf support"),
]


def parameter(**attributes: Any) -> torch.nn.Parameter:
    """A parameter with attributes."""
    made = torch.nn.Parameter(torch.ones(2, 3))
    vars(made).update(attributes)
    return made


def tensor(**attributes: Any) -> torch.Tensor:
    """A tensor with attributes."""
    made = torch.arange(6.0)
    vars(made).update(attributes)
    return made


def sharing() -> list[torch.nn.Parameter]:
    """Many parameters with one attribute, a large one."""
    group = list(range(3000))
    return [parameter(group=group, allreduce=False) for _ in range(100)]


def repeated() -> dict[str, Any]:
    """Values that lie in a checkpoint very often."""
    row, shape = [1.5] * 10_000, (1, 2, 3)
    return {"rows": [row] * 15, "shapes": [shape] * 70_000, "texts": ["text"] * 100_000}


def with_metadata() -> OrderedDict[str, Any]:
    """A state dict, which keeps versions in an attribute, and more attributes."""
    made = torch.nn.BatchNorm1d(3).state_dict()
    vars(made).update(pop="hidden", note={"a": [1]})
    return made  # type: ignore[return-value]


def nested(depth: int) -> Any:
    """A mapping in a mapping, and so on."""
    made: Any = {"x": torch.ones(2)}
    for _ in range(depth):
        made = {"x": made}
    return made


def scheduler() -> dict[str, Any]:
    """The state of a scheduler with milestones, which it keeps in a Counter."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    multi: Any = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5])
    return {"scheduler": multi.state_dict(), "optimizer": optimizer.state_dict()}


DTYPES = [getattr(torch, name) for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)]
DTYPES = list(dict.fromkeys(dtype for dtype in DTYPES if "q" not in str(dtype) and "bits" not in str(dtype)))
WHOLE_BYTES = [dtype for dtype in DTYPES if not any(f"int{bits}" == str(dtype)[-4:] for bits in range(1, 8))]
PLAIN: dict[str, Callable[[], Any]] = {
    "attributes": lambda: [parameter(type="expert"), tensor(type="expert", narrow=3, group=[1])],
    "sharing": sharing,
    "repeated": repeated,
    "metadata": with_metadata,
    "scheduler": scheduler,
    "counter": lambda: {"c": Counter("abcab"), "empty": Counter()},
    "sets": lambda: {"s": {1, 2, "x"}, "empty": set(), "size": torch.Size([1, 2]), "no": torch.Size([])},
    "bytes": lambda: {"b": bytes(range(256)), "a": bytearray(b"xyz"), "no": bytearray()},
    "numbers": lambda: {"c": 1 - 2j, "l": 2**2000, "n": -(2**40), "f": float("inf")},
    "dtypes": lambda: {"all": WHOLE_BYTES, "by": {torch.float16: 1}, "device": torch.device("cpu")},
    "tensors": lambda: {str(each): torch.zeros(128, dtype=torch.uint8).view(each) for each in WHOLE_BYTES},
    "views": lambda: [(base := torch.arange(12.0)), base[3:], base.view(3, 4).t(), base.expand(5, 12), base[:0]],
    "conjugate": lambda: [torch.ones(3, dtype=torch.cfloat).conj(), torch.ones(3, dtype=torch.cfloat).conj().imag],
    "keys": lambda: {(1, (2, "x")): 1, 1.5: 2, None: 3, b"x": 4, torch.Size([1]): 5, True: 6},
    "ring": lambda: (ring := [], ring.append(ring))[0],
    "aliases": lambda: (twice := [torch.ones(2)], {"a": twice, "b": (twice, twice)})[1],
}  # fmt: skip
TORCHS: dict[str, Callable[[], Any]] = {
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)], layout=torch.jagged),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)]),
    "sparse": lambda: [torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr(), torch.eye(4).to_sparse_bsc((2, 2))],
    "of four bits": lambda: torch.quantize_per_channel(
        torch.ones(2, 4), torch.ones(2), torch.zeros(2), 0, torch.quint4x2
    ),
    "quantized": lambda: torch.quantize_per_channel(torch.ones(2, 3), torch.ones(2), torch.zeros(2), 0, torch.qint8),
    "storages": lambda: [torch.arange(3.0).untyped_storage(), torch.arange(3.0).storage()],
    "classes": lambda: {"class": OrderedDict, "of": [set, torch.Size, torch.Tensor], "kind": complex},
    "subclass": lambda: torch.nn.Buffer(torch.ones(2)),
    "meta": lambda: torch.empty(2, 3, device="meta"),
}


def same(one: Any, other: Any) -> bool:
    """Whether two objects are alike, with the attributes of tensors and mappings."""
    return _form(one) == _form(other)


def _form(value: Any, above: tuple[int, ...] = ()) -> Any:
    if id(value) in above:
        return "itself"
    above = (*above, id(value))
    attributes = {name: _form(each, above) for name, each in getattr(value, "__dict__", {}).items()}
    if isinstance(value, torch.Tensor):
        attributes = {} if value.is_nested else attributes  # of a jagged one its shape is among them
        return type(value), str(value.dtype), str(value.layout), _data(value), value.requires_grad, attributes
    if isinstance(value, (torch.UntypedStorage, torch.storage.TypedStorage)):
        return type(value), value.tolist()
    if isinstance(value, dict):
        return type(value), [(key, _form(each, above)) for key, each in dict.items(value)], attributes
    if isinstance(value, (list, tuple)):
        return type(value), [_form(each, above) for each in value]
    return type(value), value


def _data(value: Any) -> Any:
    if value.is_nested:
        return [_data(each) for each in torch.Tensor.unbind(value)]
    if value.device.type == "meta":
        return value.shape
    if value.layout != torch.strided or value.is_quantized:
        return str(torch.Tensor.to_dense(torch.Tensor.detach(value)) if not value.is_quantized else value.int_repr())
    bare = torch.Tensor.detach(value)
    flags = bare.shape, bare.stride(), bare.storage_offset(), bare.is_conj(), bare.is_neg()
    return flags, bytes(bare.untyped_storage())


@pytest.mark.parametrize("case", [*PLAIN, *TORCHS])
def test_as_torch_loads_it(tmp_path: Path, case: str) -> None:
    """What load returns is what torch.load returns, attributes and all."""
    path = tmp_path / "x.mdl"
    torch.save({**PLAIN, **TORCHS}[case](), path)
    expected = torch.load(path, weights_only=True)
    assert same(fsspec_csx.load(path), expected)


@pytest.mark.parametrize("case", PLAIN)
def test_without_torchs_unpickler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """All but tensors of special kinds is read without torch's unpickler, which takes most of the time."""
    path = tmp_path / "x.mdl"
    torch.save(PLAIN[case](), path)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("by torch's unpickler"))
    fsspec_csx.load(path)


@pytest.mark.parametrize("case", [case for case in [*PLAIN, *TORCHS] if case not in ("repeated", "sharing")])
def test_every_look(tmp_path: Path, case: str) -> None:
    """What can be loaded can be inspected, loaded by keys, and loaded onto the meta device as torch does."""
    path = tmp_path / "x.mdl"
    saved = {"x": {**PLAIN, **TORCHS}[case](), "y": torch.ones(3)}
    torch.save(saved, path)
    assert torch.equal(fsspec_csx.load(path, keys=["y"])["y"], saved["y"])
    assert "y" in fsspec_csx.inspect(path).tensors
    if case not in ("jagged", "nested", "of four bits", "quantized"):  # torch has none of these without data
        assert fsspec_csx.load(path, map_location="meta")["y"].is_meta


@pytest.mark.parametrize("case", TORCHS)
def test_save_of_torchs_kinds(tmp_path: Path, case: str) -> None:
    """What torch.save takes, save does: torch.load returns the same of both files."""
    fsspec_csx.save(TORCHS[case](), tmp_path / "x.mdl")
    torch.save(TORCHS[case](), tmp_path / "x.pt")
    ours, theirs = (torch.load(tmp_path / name, weights_only=True) for name in ("x.mdl", "x.pt"))
    assert same(ours, theirs)


def test_bytes_after_the_last_element(tmp_path: Path) -> None:
    """A view of a buffer whose size is no multiple of the element's is saved so that torch.load takes it."""
    saved = torch.arange(10, dtype=torch.uint8)[:8].view(torch.int32)
    fsspec_csx.save({"x": saved}, tmp_path / "x.mdl")
    fsspec_csx.async_save({"x": saved}, tmp_path / "y.mdl").result()
    for name in ("x.mdl", "y.mdl"):
        assert torch.equal(torch.load(tmp_path / name)["x"], saved)
        assert torch.equal(fsspec_csx.load(tmp_path / name)["x"], saved)


@pytest.mark.slow
def test_jagged_in_another_process(tmp_path: Path) -> None:
    """A nested jagged tensor is loaded if torch._dynamo, which torch.load requires, was not imported yet."""
    torch.save({"x": TORCHS["jagged"]()}, tmp_path / "x.mdl")
    program = "import sys, fsspec_csx; assert fsspec_csx.load(sys.argv[1])['x'].is_nested"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, tmp_path / "x.mdl"], check=True)


def test_attributes_that_hide_no_needed_method(tmp_path: Path) -> None:
    """A tensor with an attribute named like a method fills another as long as nothing needs that."""
    path = tmp_path / "x.mdl"
    torch.save({"x": parameter(type="expert")}, path)
    target = {"x": torch.zeros(2, 3)}
    fsspec_csx.load(path, into=target)
    assert target["x"].sum() == 6
    torch.save({"x": tensor(narrow="many")}, path)
    with pytest.raises(CheckpointLimitError, match="'narrow'"):
        fsspec_csx.load(path, into={"x": torch.zeros(6)})


def test_deep(tmp_path: Path) -> None:
    """What pickle can write of a deep nesting is loaded."""
    path = tmp_path / "x.mdl"
    torch.save(nested(400), path)
    loaded = fsspec_csx.load(path)
    for _ in range(400):
        loaded = loaded["x"]
    assert torch.equal(loaded["x"], torch.ones(2))


@pytest.mark.parametrize("depth", [300, 3000])
def test_depth_is_a_limit(tmp_path: Path, depth: int) -> None:
    """What is nested deeper than a limit is refused as that, not as damaged."""
    path = tmp_path / "x.mdl"
    text = b"X\x01\x00\x00\x00x"
    data = b"\x80\x02" + (b"}" + text) * depth + b"N" + b"s" * depth + b"."
    path.write_bytes(_archive(data))
    with pytest.raises(CheckpointLimitError, match="deeper than") as caught:
        fsspec_csx.load(path, keys=["x"])
    assert not isinstance(caught.value, InvalidCheckpointError)
    assert "damaged" not in str(caught.value)


def _archive(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x/data.pkl", data)
        file.writestr("x/byteorder", "little")
        file.writestr("x/version", "3\n")
    return buffer.getvalue()


def test_default_mapping(tmp_path: Path) -> None:
    """A defaultdict of builtin values, which torch.load refuses, is loaded and inspected; of others it is refused."""
    path = tmp_path / "x.mdl"
    saved = {"d": defaultdict(list, a=[1]), "none": defaultdict(None, b=2), "empty": b""}
    fsspec_csx.save(saved, path)
    loaded = fsspec_csx.load(path)
    assert loaded == saved
    assert loaded["d"].default_factory is list
    assert fsspec_csx.inspect(path).values["d.a.0"] == 1
    fsspec_csx.save({"d": defaultdict(parameter)}, path)
    with pytest.raises(CheckpointError):
        fsspec_csx.load(path)


def test_what_stands_for_classes_is_never_returned(tmp_path: Path) -> None:
    """Classes of builtins that lie in a file as values are those of builtins, or the file is refused as by torch."""
    for value in (list, dict, int, bytes, defaultdict):
        path = tmp_path / "x.mdl"
        torch.save({"x": [value]}, path)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
        with pytest.raises(CheckpointError):
            fsspec_csx.load(path)
