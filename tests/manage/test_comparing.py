"""compare: the differences of two checkpoints, whatever their tensors' dtypes, layouts, storages and formats."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
from broken import begin_of, flip, sparse_safetensors
from conftest import recorded_requests
from proxy import fault_proxy, through

from fsspec_csx.checkpoint.api import save
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.checkpoint_info import Difference
from fsspec_csx.manage.diff import Comparison, compare
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.tensors import tensor_stream, tiling
from fsspec_csx.testing import LocalS3

NAN, INF = math.nan, math.inf


def found(folder: Path, first: Any, second: Any, **options: Any) -> tuple[Difference, ...]:
    """The comparison of two objects that were saved."""
    save(first, folder / "first.mdl")
    save(second, folder / "second.mdl")
    return compare(folder / "first.mdl", folder / "second.mdl", **options).differences


def of_tensors(folder: Path, first: torch.Tensor, second: torch.Tensor, **options: Any) -> Any:
    """How many elements of two tensors differ, and by how much at most; None if the tensors are equal."""
    report = found(folder, {"w": first}, {"w": second}, **options)
    assert all((each.name, each.what) == ("w", "value") for each in report)
    return (report[0].elements, report[0].absolute, report[0].relative) if report else None


# -- names and values --------------------------------------------------------------------------------------------------


def test_equal(tmp_path: Path) -> None:
    """Equal checkpoints have no differences, and what is in them is counted."""
    state = {"model": {"w": torch.randn(4, 5), "b": torch.zeros(0)}, "step": 7, "notes": ["a", ("b", 2.5)], "e": {}}
    save(state, tmp_path / "first.mdl")
    save(state, tmp_path / "second.mdl")
    report = compare(tmp_path / "first.mdl", tmp_path / "second.mdl")
    assert report == Comparison((), tensors=2, values=5, skipped=0)


def test_names(tmp_path: Path) -> None:
    """An entry that only one has is reported with what it is, in the order of the files."""
    report = found(tmp_path, {"a": 1, "b": torch.ones(2, 3), "c": 2}, {"c": 2, "d": "x"})
    assert report == (
        Difference("a", "only in the first", "1"),
        Difference("b", "only in the first", "tensor float32 (2, 3)"),
        Difference("d", "only in the second", None, "'x'"),
    )


def test_names_are_names(tmp_path: Path) -> None:
    """An entry of one number is not that of another, and names with dots are apart from nested ones."""
    assert [each.name for each in found(tmp_path, {"w1": 1}, {"w1": 1, "w10": 1})] == ["w10"]
    assert found(tmp_path, {"a.b": 1, "a": {"b": 2}}, {"a.b": 1, "a": {"b": 2}}) == ()
    assert [each.what for each in found(tmp_path, {"a.b": 1, "a": {"b": 2}}, {"a.b": 1, "a": {"b": 3}})] == ["value"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 1.0),
        (True, 1),
        ("1", 1),
        (None, 0),
        ([1], (1,)),
        ([1], {"0": 1}),
        ({}, []),
        (5, {"x": 1}),
        ({"x": 1}, 5),
        (torch.ones(1), 1.0),
        (b"x", "x"),
    ],
)
def test_types(tmp_path: Path, first: Any, second: Any) -> None:
    """What is of another type differs, equal or not."""
    report = found(tmp_path, {"v": first}, {"v": second})
    assert ("v", "type") in {(each.name, each.what) for each in report}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *((1, 2), ("a", "b"), (0.5, NAN), (NAN, 0.5), (1j, 2j), (b"a", b"b"), (torch.float32, torch.float64)),
        *(({1, 2}, {1, 3}), (torch.Size([1]), torch.Size([2])), (2**2000, 2**2000 + 1)),
    ],
    ids=range(10),
)
def test_values(tmp_path: Path, first: Any, second: Any) -> None:
    """Values that are no tensors are compared."""
    assert [(each.name, each.what) for each in found(tmp_path, {"v": first}, {"v": second})] == [("v", "value")]


@pytest.mark.parametrize("value", [NAN, complex(NAN, 1), 0.1, "x" * 1000, {1, 2}, (), [], {"a": []}, OrderedDict()])
def test_equal_values(tmp_path: Path, value: Any) -> None:
    """A value equals itself, NaN too."""
    assert found(tmp_path, {"v": value}, {"v": value}) == ()


def test_kinds_of_mappings(tmp_path: Path) -> None:
    """A dict equals an OrderedDict in another order, and a Parameter a tensor."""
    first = {"a": 1, "w": torch.nn.Parameter(torch.ones(2))}
    assert found(tmp_path, first, OrderedDict(w=torch.ones(2), a=1)) == ()


def test_the_whole(tmp_path: Path) -> None:
    """A checkpoint may be a tensor, or hold itself."""
    assert found(tmp_path, torch.ones(2), torch.ones(2)) == ()
    assert found(tmp_path, torch.ones(2), torch.zeros(2)) == (Difference("", "value", None, None, 2, 2, 1.0, INF),)
    cycle: dict[str, Any] = {"x": 1}
    cycle["self"] = cycle
    assert found(tmp_path, cycle, cycle) == ()


# -- elements ----------------------------------------------------------------------------------------------------------

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
EIGHTS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("dtype", FLOATS + EIGHTS, ids=str)
def test_floats(tmp_path: Path, dtype: torch.dtype) -> None:
    """The elements that differ are counted, and the largest deviation is reported."""
    first = torch.tensor([1.0, 2.0, 3.0, 4.0]).to(dtype)
    second = torch.tensor([1.0, 2.5, 2.0, 4.0]).to(dtype)
    assert of_tensors(tmp_path, first, second) == (2, 1.0, 0.5)
    assert of_tensors(tmp_path, first, first.clone()) is None


@pytest.mark.parametrize("op", ["equal", "allclose"])
def test_nan_and_infinity(tmp_path: Path, op: str) -> None:
    """NaN equals NaN in the same place, and infinity itself; nothing else is near them."""
    first = torch.tensor([NAN, INF, -INF, 0.0, 1.0])
    assert of_tensors(tmp_path, first, torch.tensor([NAN, INF, -INF, -0.0, 1.0]), op=op) is None
    assert of_tensors(tmp_path, first, torch.tensor([NAN, INF, INF, 0.0, 1.0]), op=op) == (1, INF, INF)
    assert of_tensors(tmp_path, first, torch.tensor([NAN, 5.0, -INF, 0.0, 1.0]), op=op) == (1, INF, INF)
    count, absolute, relative = of_tensors(tmp_path, first, torch.tensor([1.0, INF, -INF, 0.0, 9.0]), op=op)
    assert count == 2
    assert math.isnan(absolute)
    assert math.isnan(relative)


def test_bits_of_nan(tmp_path: Path) -> None:
    """NaN of other bits is NaN."""
    first = torch.tensor([0x7FC00000, 0], dtype=torch.int32).view(torch.float32)
    second = torch.tensor([0x7FC00001, 0], dtype=torch.int32).view(torch.float32)
    assert of_tensors(tmp_path, first, second) is None


@pytest.mark.parametrize(
    ("dtype", "first", "second", "apart"),
    [
        (torch.int64, 2**62, 2**62 + 1, 1),
        (torch.int64, -(2**63), 2**63 - 1, 2**64 - 1),
        (torch.int64, -(2**63), 0, 2**63),
        (torch.uint64, 0, 2**64 - 1, 2**64 - 1),
        (torch.uint64, 2**63, 2**63 - 1, 1),
        (torch.int32, -(2**31), 2**31 - 1, 2**32 - 1),
        (torch.uint32, 0, 2**32 - 1, 2**32 - 1),
        (torch.uint16, 1, 2**16 - 1, 2**16 - 2),
        (torch.int8, -128, 127, 255),
        (torch.uint8, 0, 255, 255),
        (torch.bool, False, True, 1),
    ],
)
@pytest.mark.parametrize("op", ["equal", "allclose"])
def test_whole_numbers(tmp_path: Path, dtype: torch.dtype, first: int, second: int, apart: int, op: str) -> None:
    """Whole numbers are compared exactly, to the last digit and the widest difference."""
    count, absolute, relative = of_tensors(
        tmp_path, torch.tensor([first, 1], dtype=dtype), torch.tensor([second, 1], dtype=dtype), op=op
    )
    assert (count, absolute) == (1, apart)
    assert relative == pytest.approx(apart / abs(second) if second else INF)


def test_complex(tmp_path: Path) -> None:
    """Complex numbers differ by their distance, and a conjugated view by what it stands for."""
    first = torch.tensor([1 + 1j, 2 - 2j, complex(NAN, 0)])
    assert of_tensors(tmp_path, first, first.clone()) is None
    assert of_tensors(tmp_path, first, torch.tensor([1 + 1j, 5 + 2j, complex(NAN, 0)]))[:2] == (1, 5.0)
    assert of_tensors(tmp_path, first[:2], first[:2].conj())[:2] == (2, 4.0)
    assert of_tensors(tmp_path, first[:2].conj(), torch.tensor([1 - 1j, 2 + 2j])) is None
    assert of_tensors(tmp_path, first[:2].conj().imag, torch.tensor([-1.0, 2.0])) is None


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no such dtype")
def test_packed(tmp_path: Path) -> None:
    """What torch computes nothing with is compared by its bytes."""
    first = torch.tensor([1, 2, 3], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    second = torch.tensor([1, 2, 5], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    assert of_tensors(tmp_path, first, first.clone()) is None
    assert of_tensors(tmp_path, first, second)[0] == 1


def test_allclose(tmp_path: Path) -> None:
    """allclose allows what torch.allclose does, and its tolerances are relative to the second."""
    first, second = torch.tensor([100.0, 0.0]), torch.tensor([101.0, 1e-9])
    assert of_tensors(tmp_path, first, second)[0] == 2
    assert of_tensors(tmp_path, first, second, op="allclose") == (1, 1.0, pytest.approx(1 / 101))
    assert of_tensors(tmp_path, first, second, op="allclose", rtol=0.01) is None
    assert of_tensors(tmp_path, second, first, op="allclose", rtol=0.00999)[0] == 1
    assert of_tensors(tmp_path, first, second, op="allclose", rtol=0, atol=1) is None
    assert of_tensors(tmp_path, first, second, op="allclose", rtol=0, atol=0)[0] == 2


def test_dtypes(tmp_path: Path) -> None:
    """Another dtype is a difference; allclose compares the elements too, as those of the wider one."""
    first, second = torch.tensor([1.0, 1 / 3]), torch.tensor([1.0, 1 / 3]).to(torch.bfloat16)
    other = Difference("w", "dtype", "float32", "bfloat16")
    assert found(tmp_path, {"w": first}, {"w": second}) == (other,)
    assert found(tmp_path, {"w": first}, {"w": second}, op="allclose", rtol=0.01) == (other,)
    report = found(tmp_path, {"w": first}, {"w": second}, op="allclose")
    assert report[0] == other
    assert (report[1].what, report[1].elements) == ("value", 1)
    assert report[1].absolute == float((first - second.float()).abs().max())


@pytest.mark.parametrize("dtypes", [(torch.int64, torch.uint64), (torch.int32, torch.float32)], ids=str)
def test_dtypes_of_whole_numbers(tmp_path: Path, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Whole numbers of which no dtype holds both are not compared, others are."""
    first, second = (torch.ones(2).to(dtype) for dtype in dtypes)
    assert [each.what for each in found(tmp_path, {"w": first}, {"w": second}, op="allclose")] == ["dtype"]


def test_shapes(tmp_path: Path) -> None:
    """Of tensors of other shapes no elements are compared."""
    report = found(tmp_path, {"w": torch.ones(2, 3)}, {"w": torch.zeros(3, 2)})
    assert report == (Difference("w", "shape", "(2, 3)", "(3, 2)"),)
    assert [each.what for each in found(tmp_path, {"w": torch.ones(())}, {"w": torch.ones(1)})] == ["shape"]
    assert of_tensors(tmp_path, torch.tensor(1.0), torch.tensor(2.0)) == (1, 1.0, 0.5)
    assert of_tensors(tmp_path, torch.ones(0, 3), torch.ones(0, 3)) is None


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["coo", "csr"])
def test_sparse(tmp_path: Path, convert: Any) -> None:
    """Sparse tensors are compared where either has an element."""
    first, second = torch.zeros(4, 4), torch.zeros(4, 4)
    first[0, 1], first[2, 2] = 5, 7
    second[0, 1], second[3, 3] = 5, 2
    assert of_tensors(tmp_path, convert(first), convert(first)) is None
    assert of_tensors(tmp_path, convert(first), convert(second)) == (2, 7.0, INF)
    assert found(tmp_path, {"w": convert(first)}, {"w": first})[0].what == "layout"


def test_sparse_in_other_dimensions(tmp_path: Path) -> None:
    """Tensors that are sparse in another number of dimensions differ in layout, and are not compared."""
    first = torch.eye(3)
    report = found(tmp_path, {"w": first.to_sparse(1)}, {"w": first.to_sparse(2)})
    assert [(each.what, each.first) for each in report] == [("layout", "sparse_coo, in 1 dimensions")]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_quantized(tmp_path: Path) -> None:
    """Quantized tensors are compared by what they stand for, and by how they are quantized."""
    plain = torch.tensor([0.0, 0.5, 1.0])
    first = torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8)
    assert of_tensors(tmp_path, first, first.clone()) is None
    assert of_tensors(tmp_path, first, torch.quantize_per_tensor(plain + 0.3, 0.1, 0, torch.qint8))[0] == 3
    other = torch.quantize_per_tensor(plain, 0.2, 0, torch.qint8)
    assert [each.what for each in found(tmp_path, {"w": first}, {"w": other})] == ["layout"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nested(tmp_path: Path) -> None:
    """Nested tensors are compared part by part."""
    first = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    second = torch.nested.nested_tensor([torch.ones(2), torch.tensor([1.0, 1.0, 3.0])])
    other = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])
    assert of_tensors(tmp_path, first, first.clone()) is None
    assert of_tensors(tmp_path, first, second) == (1, 2.0, pytest.approx(2 / 3))
    assert [each.what for each in found(tmp_path, {"w": first}, {"w": other})] == ["shape"]


def test_storages(tmp_path: Path) -> None:
    """A storage that was saved by itself is compared by its elements."""
    first, second = torch.ones(3).untyped_storage(), torch.zeros(3).untyped_storage()
    assert found(tmp_path, {"s": first}, {"s": first}) == ()
    assert [each.elements for each in found(tmp_path, {"s": first}, {"s": second})] == [6]


def test_without_data(tmp_path: Path) -> None:
    """Tensors that were saved without data have nothing to compare."""
    first = torch.ones(3, device="meta")
    assert found(tmp_path, {"w": first}, {"w": first}) == ()
    assert [each.what for each in found(tmp_path, {"w": first}, {"w": torch.ones(3)})] == ["layout"]


# -- storages that are shared, views and pieces ------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 512 bytes, and batches of 2 KiB."""
    monkeypatch.setattr(tensor_stream, "_PIECE", 512)
    monkeypatch.setattr(tensor_stream, "_BATCH", 2048)
    monkeypatch.setattr(tiling, "GAP", 64)


def views(base: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors of shape (24, 30) and less on one storage, by all kinds of strides."""
    return {
        "plain": base,
        "turned": base.clone().t().contiguous().t(),
        "rows": base[::2],
        "columns": base[:, ::3],
        "inner": base[5:20, 7:11],
        "column": base[:, 4],
        "expanded": base[:, :1].expand(24, 50),
        "overlapping": base.as_strided((20, 40), (7, 1)),
        "last": base[-1, -1],
        "channels": torch.stack([base] * 4).reshape(2, 2, 24, 30).to(memory_format=torch.channels_last),
    }


@pytest.mark.usefixtures("small_pieces")
def test_views(tmp_path: Path) -> None:
    """Each view is compared as it is, whatever its strides are in either file, in pieces smaller than itself."""
    torch.manual_seed(0)
    base = torch.randn(24, 30, dtype=torch.float64)
    first = views(base)
    second = {name: tensor.contiguous().clone() for name, tensor in first.items()}
    assert found(tmp_path, first, second) == ()
    assert found(tmp_path, second, first) == ()
    changed = {name: tensor.clone() for name, tensor in second.items()}
    for tensor in changed.values():
        tensor.view(-1)[-1] += 1
        tensor.view(-1)[0] -= 2
    for pair in ((first, changed), (changed, first)):
        report = {each.name: (each.elements, round(each.absolute or 0, 9)) for each in found(tmp_path, *pair)}
        assert report == {name: (2, 2.0) for name in first if name != "last"} | {"last": (1, 1.0)}


@pytest.mark.usefixtures("small_pieces")
def test_any_strides(tmp_path: Path) -> None:
    """Random views of random storages give what torch itself computes."""
    chance = random.Random(5)
    torch.manual_seed(5)
    first, second = {}, {}
    for number in range(60):
        shape = [chance.randint(1, 9) for _ in range(chance.randint(0, 4))]
        for side in (first, second):
            strides = [chance.choice([0, 1, 2, 7, 31]) for _ in shape]
            start = chance.randint(0, 5)
            size = start + 1 + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
            side[str(number)] = torch.randint(0, 3, (size,)).float().as_strided(shape, strides, start)
    report = {each.name: (each.elements, each.absolute) for each in found(tmp_path, first, second)}
    for name, tensor in first.items():
        apart = (tensor - second[name]).abs()
        wanted = (int(apart.count_nonzero()), float(apart.max()))
        assert report.get(name, (0, 0.0)) == wanted


@pytest.mark.usefixtures("small_pieces")
def test_what_both_repeat(tmp_path: Path) -> None:
    """Elements that lie in both tensors again and again are compared once, and counted as often as they are there."""
    first, second = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0], [2.5], [1.0]])
    assert of_tensors(tmp_path, first.expand(3, 2**38), second.expand(3, 2**38))[:2] == (2**39, 2.0)
    assert of_tensors(tmp_path, first.expand(4, 3, 5), second.repeat(4, 1, 5))[:2] == (40, 2.0)
    assert of_tensors(tmp_path, first.expand(3, 2**38), first.clone().expand(3, 2**38)) is None


def test_shared_storages(tmp_path: Path) -> None:
    """Tensors that share their memory are each reported, and read once."""
    first, second = torch.randn(300), torch.randn(300)
    tied = {"a": first, "b": first, "c": first[:100], "d": first.view(10, 30)}
    assert found(tmp_path, tied, tied) == ()
    changed = first.clone()
    changed[200] += 1
    other = {"a": changed, "b": changed, "c": changed[:100], "d": changed.view(10, 30)}
    assert [each.name for each in found(tmp_path, tied, other)] == ["a", "b", "d"]
    apart = {"a": first, "b": second, "c": first[:100], "d": first.view(10, 30)}
    assert [(each.name, each.elements) for each in found(tmp_path, tied, apart)] == [("b", 300)]


def test_large_pieces(tmp_path: Path) -> None:
    """A tensor of more than a piece is compared to its last element."""
    first = torch.arange(9 * 2**20, dtype=torch.int32)
    second = first.clone()
    second[-1] += 3
    second[5 * 2**20] += 1
    assert of_tensors(tmp_path, first, second)[:2] == (2, 3)


# -- what is read ------------------------------------------------------------------------------------------------------


def test_equal_checksums_are_read(tmp_path: Path) -> None:
    """Checksums in the files prove nothing: bytes that do not have theirs are damage, not equal."""
    state = {"w": torch.randn(1_000_000), "v": torch.randn(1_000_000)}
    save(state, tmp_path / "first.mdl")
    save(state, tmp_path / "second.mdl")
    flip(tmp_path / "first.mdl", begin_of(tmp_path / "first.mdl", "data/0") + 2_000_000)
    with pytest.raises(InvalidCheckpointError, match="checksum of 'w'"):
        compare(tmp_path / "first.mdl", tmp_path / "second.mdl")


def test_equal_checksums_of_other_views(tmp_path: Path) -> None:
    """Equal bytes in another shape, dtype or order are no equal tensors."""
    whole = torch.arange(16, dtype=torch.int32).reshape(4, 4)
    assert of_tensors(tmp_path, whole, whole.t())[0] == 12
    assert of_tensors(tmp_path, whole[:2], whole[2:])[0] == 8
    assert [each.what for each in found(tmp_path, {"w": whole}, {"w": whole.view(torch.float32)})] == ["dtype"]


@pytest.mark.parametrize("side", ["first", "second"])
@pytest.mark.parametrize(
    "view", [lambda x: x, lambda x: x[5:], lambda x: x.view(100, 100).t()], ids=["all", "part", "t"]
)
@pytest.mark.usefixtures("small_pieces")
def test_flipped_byte(tmp_path: Path, side: str, view: Any) -> None:
    """A byte that was flipped in either file is an error that names the tensor, and no difference."""
    base = torch.randn(10_000)
    save({"model": {"w": view(base)}}, tmp_path / "first.mdl")
    save({"model": {"w": view(base + 1)}}, tmp_path / "second.mdl")
    path = tmp_path / f"{side}.mdl"
    flip(path, begin_of(path, "data/0") + 3)
    with pytest.raises(InvalidCheckpointError, match=rf"{side}.mdl is damaged: the checksum of 'model.w' is wrong"):
        compare(tmp_path / "first.mdl", tmp_path / "second.mdl")


def test_other_files(tmp_path: Path) -> None:
    """What is no checkpoint, or missing, is an error whichever it is."""
    save({"w": torch.ones(2)}, tmp_path / "x.mdl")
    (tmp_path / "text").write_text("text")
    for other, error in (("text", InvalidCheckpointError), ("missing", FileNotFoundError)):
        with pytest.raises(error, match=other):
            compare(tmp_path / "x.mdl", tmp_path / other)
        with pytest.raises(error, match=other):
            compare(tmp_path / other, tmp_path / "x.mdl")


@pytest.mark.parametrize("options", [{"op": "close"}, {"op": "allclose", "rtol": -1.0}, {"atol": NAN}])
def test_wrong_options(tmp_path: Path, options: dict[str, Any]) -> None:
    """An unknown operation and a tolerance that is none are refused before anything is opened."""
    with pytest.raises(ValueError, match=r"compared by 'close'|cannot be negative"):
        compare(tmp_path / "x", tmp_path / "y", **options)


# -- formats and filesystems -------------------------------------------------------------------------------------------


def test_formats(tmp_path: Path) -> None:
    """A torch file, nested or not, one of before torch 1.6, and a safetensors file are compared by the dotted names."""
    state = {"model": {"w": torch.randn(30, 40).t(), "b": torch.ones(3, dtype=torch.bfloat16)}}
    flat = {"model.w": state["model"]["w"].contiguous(), "model.b": state["model"]["b"]}
    save(state, tmp_path / "nested.mdl")
    torch.save(state, tmp_path / "old.mdl", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(flat, tmp_path / "flat.safetensors")
    flat["model.b"] = flat["model.b"] * 2
    safetensors.torch.save_file(flat, tmp_path / "other.safetensors")
    paths = [tmp_path / name for name in ("nested.mdl", "old.mdl", "flat.safetensors")]
    for first in paths:
        for second in paths:
            assert compare(first, second).differences == ()
        (report,) = compare(first, tmp_path / "other.safetensors").differences
        assert (report.name, report.elements, report.absolute, report.relative) == ("model.b", 3, 1.0, 0.5)


def test_filesystems(root: str, tmp_path: Path) -> None:
    """Checkpoints on different filesystems are compared; names hold any characters."""
    state = {"w": torch.randn(1000, 1000), "step": 1}
    path = f"{root}/a #1 ?*[x] %20 é.mdl"
    save(state, path)
    save({"decoy": 1}, f"{root}/a #1 ?*[x] %20 é.mdl0")
    save(state, tmp_path / "same.mdl")
    state["w"][999, 999] += 1
    save(state, tmp_path / "other.mdl")
    assert compare(path, tmp_path / "same.mdl").differences == ()
    assert [each.elements for each in compare(tmp_path / "other.mdl", path).differences] == [1]


@pytest.mark.usefixtures("environment")
def test_equal_objects_are_not_read(server: LocalS3, bucket: str) -> None:
    """Of objects with the same checksum on the server only the structure is read."""
    tensors = {"w": torch.randn(2_000_000), "v": torch.ones(3)}
    for name in ("first", "second", "third"):
        tensors["v"] = tensors["v"] + (name == "third")
        save(tensors, f"s3://{bucket}/{name}.safetensors")
    with fault_proxy(server.endpoint_url) as proxy:
        options = through(proxy, server).storage_options
        report = compare(
            *(f"s3://{bucket}/{name}.safetensors" for name in ("first", "second")), storage_options=options
        )
        assert report == Comparison((), tensors=2, values=0, skipped=2)
        assert sum(request.sent for request in proxy.made()) < 2 * 2**20
    report = compare(f"s3://{bucket}/first.safetensors", f"s3://{bucket}/third.safetensors")
    assert [(each.name, each.elements) for each in report.differences] == [("v", 3)]
    assert report.skipped == 0


def test_checksum_of_an_object(fs: CSXFileSystem, bucket: str) -> None:
    """An open object says the server's checksum of it, without a request."""
    fs.pipe_file(f"{bucket}/x", b"123456789")
    with fs.open(f"{bucket}/x") as file, recorded_requests() as operations:
        algorithm, report = file.object_checksum()
    assert algorithm.encoded(algorithm.compute(memoryview(b"123456789"), 0)) == report
    assert operations == []


# Not ru_maxrss, which a process inherits from the one that started it.
MEASURED = """
import sys, torch
from fsspec_csx.manage.diff import compare
from fsspec_csx.checkpoint.api import save
def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
save({"w": torch.ones(3)}, sys.argv[1] + ".mdl")
compare(sys.argv[1] + ".mdl", sys.argv[1] + ".mdl")
before = most()
found = compare(sys.argv[1], sys.argv[2])
print(len(found.differences), (most() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process had at most")
def test_memory(tmp_path: Path) -> None:
    """However large the checkpoints, no more than 2 x 64 MiB of them are in memory, and what is made of a few."""
    sparse_safetensors(tmp_path / "first", 300 * 2**20, b"1")
    sparse_safetensors(tmp_path / "second", 300 * 2**20, b"2")
    arguments = [sys.executable, "-c", MEASURED, str(tmp_path / "first"), str(tmp_path / "second")]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=100)
    differences, mebibytes = map(int, done.stdout.split())
    assert differences == 1
    assert 64 < mebibytes < 180


def test_any_filesystem_is_closed(tmp_path: Path) -> None:
    """Files on a filesystem that reads nothing in parallel are compared, and closed."""
    memory = fsspec.filesystem("memory")
    save({"w": torch.ones(5)}, f"memory://{tmp_path.name}/x.mdl")
    with memory.open(f"/{tmp_path.name}/x.mdl") as file:
        (tmp_path / "x.mdl").write_bytes(file.read())
    assert compare(f"memory://{tmp_path.name}/x.mdl", tmp_path / "x.mdl").differences == ()
