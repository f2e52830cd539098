"""Checkpoints with objects of unknown classes: all other entries can be read, and none of their code is run."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from fsspec_csx import inspect, load
from fsspec_csx.cli import main
from fsspec_csx.errors import InvalidCheckpointError, UnsafeCheckpointError
from fsspec_csx.formats.placeholders import Placeholder, equal, is_free
from fsspec_csx.formats.torch_zip import reader
from fsspec_csx.manage.convert import convert
from fsspec_csx.manage.diff import compare
from fsspec_csx.manage.verify import verify
from fsspec_csx.tensors.source import Source
from fsspec_csx.testing.example_values import TENSORS, plain, same


class Config:
    """A class of the user's own."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __setstate__(self, state: dict[str, Any]) -> None:
        msg = "it runs code of its own"
        raise AssertionError(msg)


class Running:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


UNKNOWN: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=0.1, weight=torch.ones(3)),
    "own": Config(a=1),
    "partial": functools.partial(print, 1),
    "path": Path("x"),
    "number": numpy.float64(2),
    "array": numpy.arange(3),
    "default": defaultdict(str, {"a": "b"}),
    "class": Config,
    "running": Running(),
    "subclass": TENSORS["a subclass"](),
    "wrapper": TwoTensor(torch.ones(2), torch.zeros(2)),
}
MODEL = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.ones(2, dtype=torch.bfloat16))


def lightning(**more: Any) -> dict[str, Any]:
    """What a checkpoint of a training may hold."""
    plain_values = {"epoch": 3, "lr": 0.1, "size": torch.Size([2]), "set": {1}, "bytes": b"\xff", "none": None}
    return {"state_dict": MODEL, "hyper_parameters": {**UNKNOWN, **more}, **plain_values}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint with all of them."""
    monkeypatch.chdir(tmp_path)
    torch.save(lightning(), "last.ckpt")
    return "last.ckpt"


def test_info_names_what_is_not_loaded(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything is listed; what is not loaded by its class."""
    found = inspect(path)
    assert set(found.tensors) == {"state_dict.weight", "state_dict.bias"}
    assert repr(found.values["hyper_parameters.namespace"]) == "<argparse.Namespace, not loaded>"
    shown = {name: repr(value) for name, value in found.values.items() if isinstance(value, Placeholder)}
    assert shown.keys() == {f"hyper_parameters.{name}" for name in UNKNOWN}
    assert shown["hyper_parameters.own"] == "<test_unknown_classes.Config, not loaded>"
    assert shown["hyper_parameters.array"] == "<numpy.ndarray, not loaded>"
    assert shown["hyper_parameters.subclass"] == "<fsspec_csx.testing.example_values.Subclass, not loaded>"
    assert found.values["epoch"] == 3
    assert found.values["bytes"] == b"\xff"
    assert main(["checkpoint", "info", "-l", path]) == 0
    assert "<argparse.Namespace, not loaded>" in capsys.readouterr().out


def test_entries_are_loaded_by_keys(path: str) -> None:
    """What is known is loaded by its name, on any device; what is not is refused by name, as is the whole."""
    found = load(path, keys=["state_dict", "epoch", "set", "size", "none"])
    assert same(found, {"state_dict": MODEL, "epoch": 3, "size": torch.Size([2]), "set": {1}, "none": None})
    assert load(path, keys=["state_dict.weight"], map_location="meta")["state_dict"]["weight"].is_meta
    moved = load(path, keys=["state_dict"], map_location=lambda storage, location: storage)
    assert same(moved["state_dict"], MODEL)
    into = {"state_dict": {name: torch.zeros_like(value) for name, value in MODEL.items()}}
    load(path, keys=["state_dict"], into=into)
    assert same(into["state_dict"], dict(MODEL))
    with pytest.raises(UnsafeCheckpointError, match=r"'hyper_parameters\.own' of test_unknown_classes\.Config"):
        load(path, keys=["hyper_parameters.own"])
    with pytest.raises(UnsafeCheckpointError, match=r"argparse\.Namespace") as caught:
        load(path)
    assert all(remedy in str(caught.value) for remedy in ("keys=", "weights_only=False", "add_safe_globals"))
    assert not Path("ran").exists()


def test_refused_before_tensors_are_read(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.load, which would read the tensors in front of the unknown class, is not called."""
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("reads tensors"))
    with pytest.raises(UnsafeCheckpointError, match="Namespace"):
        load(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_known_kinds_are_built_as_torch_builds_them(tmp_path: Path) -> None:
    """All kinds of tensors that need no more than their storages are the same beside an unknown object."""
    wrong = []
    for name, make in TENSORS.items():
        if name in ("sparse", "sparse rows", "quantized", "quantized per channel", "nested", "jagged", "a subclass"):
            continue
        torch.save({"it": make(), "unknown": Config()}, tmp_path / "x.mdl")
        if name == "a parameter without a shape":
            assert not is_free(inspect(tmp_path / "x.mdl").values["it"])
        elif not same(load(tmp_path / "x.mdl", keys=["it"])["it"], make()):
            wrong.append(name)
    assert wrong == []


def test_verify_checks_the_rest(path: str) -> None:
    """The bytes of all tensors are checked, and it is said what was not loaded."""
    found = verify(path)
    assert (found.damage, found.unchecked) == ((), 0)
    assert "argparse.Namespace" in found.note
    data = bytearray(Path(path).read_bytes())
    data[data.index(torch.arange(6.0).numpy().tobytes())] ^= 1
    Path(path).write_bytes(data)
    assert "'state_dict.weight'" in verify(path).damage[0]


def test_diff_compares_the_rest(path: str) -> None:
    """Objects of unknown classes are equal if what the pickle says of them is, tensors within them too."""
    torch.save(lightning(), "same.ckpt")
    assert compare(path, "same.ckpt").differences == ()
    torch.save(lightning(own=Config(a=2)), "other.ckpt")
    assert [each.name for each in compare(path, "other.ckpt").differences] == ["hyper_parameters.own"]
    torch.save(lightning(namespace=argparse.Namespace(lr=0.1, weight=torch.zeros(3))), "other.ckpt")
    (difference,) = compare(path, "other.ckpt").differences
    assert (difference.name, difference.elements) == ("hyper_parameters.namespace: tensor 0", 3)


def test_convert_leaves_them_out(path: str) -> None:
    """A conversion to safetensors leaves them out if the caller allows it; formats of values refuse them by name."""
    dropped = convert(path, "x.safetensors", drop_values=True).dropped
    assert {f"hyper_parameters.{name}" for name in UNKNOWN} <= set(dropped)
    assert same(load("x.safetensors")["state_dict.weight"], MODEL["weight"])
    for target, options in (("x.mdl", {}), ("x", {"format": "distributed"})):
        with pytest.raises(UnsafeCheckpointError, match=r"'hyper_parameters\.namespace'"):
            convert(path, target, **options)  # type: ignore[arg-type]
        assert not Path(target).exists()
        convert(path, target, keys=["state_dict", "epoch"], **options)  # type: ignore[arg-type]
        assert same(plain(load(target), dicts=True), {"state_dict": dict(MODEL), "epoch": 3})


def test_commands_run_no_code(path: str) -> None:
    """The command's verbs read such a file, and nothing in it is run."""
    for verb in (["info", path], ["verify", path], ["diff", path, path], ["list", "."]):
        assert main(["checkpoint", *verb, "--quiet"]) == 0, verb
    assert main(["checkpoint", "convert", path, "x.safetensors", "--drop-values", "--quiet"]) == 0
    assert not Path("ran").exists()


class _Rewritten(Config):
    """Stands in a pickle for what is put in its place."""


def crafted(change: Callable[[bytes], bytes], folder: Path) -> str:
    """A file whose pickle was changed, with new checksums and sizes."""
    torch.save({"w": torch.ones(4), "unknown": _Rewritten()}, folder / "first.mdl")
    with zipfile.ZipFile(folder / "first.mdl") as old, zipfile.ZipFile(folder / "x.mdl", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return str(folder / "x.mdl")


HOSTILE = {
    "attributes of a class": b"ctorch\nTensor\n}X\x03\x00\x00\x00addK\x01sb",
    "a call of a value": b"K\x01)R",
    "a copy without end": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "a state of a tuple": b")}b",
    "entries of a number": b"K\x01K\x02K\x03s",
    "items of a text": b"X\x01\x00\x00\x00aK\x02a",
    "a size of text": b"ctorch\nSize\nX\x01\x00\x00\x00a\x85R",
    "an unknown encoding": b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R",
    "a key of nested tuples": b"}K\x01\x85\x85K\x02s",
    "a list as a key": b"}]K\x02s",
    "a memo of gigabytes": b"K\x01r\xff\xff\xff\xff",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(tmp_path: Path, name: str) -> None:
    """What is not as torch.save writes it is refused, or stands for itself; torch's classes stay as they are."""
    before = dict(vars(torch.Tensor))
    path = crafted(lambda data: _put_first(data, HOSTILE[name]), tmp_path)
    found = None
    with contextlib.suppress(UnsafeCheckpointError, InvalidCheckpointError):
        found = load(path, keys=["w"])
    assert found is None or same(found, {"w": torch.ones(4)})
    assert dict(vars(torch.Tensor)) == before


def _put_first(data: bytes, opcodes: bytes) -> bytes:
    """A pickle that does something first, and drops what comes of it."""
    return data[:2] + opcodes + b"0" + data[2:]


def test_tensors_stay_within_their_storages(tmp_path: Path) -> None:
    """A tensor that reaches beyond its storage is refused."""
    path = crafted(lambda data: data.replace(b"K\x04\x85", b"K\x7f\x85"), tmp_path)
    with pytest.raises((UnsafeCheckpointError, InvalidCheckpointError)):
        load(path, keys=["w"])


def test_placeholders_are_equal_by_what_they_are_made_of() -> None:
    """Cycles end; order counts."""
    first, second = Placeholder("a.B", (1, 2)), Placeholder("a.B", (1, 2))
    first.parts.append(first)
    second.parts.append(second)
    assert equal(first, second)
    assert not equal(first, Placeholder("a.B", (2, 1)))
    assert not equal(Placeholder("a.B"), Placeholder("a.C"))


def test_other_pickles_are_left_to_torch(tmp_path: Path) -> None:
    """A file that is no archive of torch.save has no structure to be read by itself."""
    (tmp_path / "x").write_bytes(pickle.dumps(Config()))
    with open(tmp_path / "x", "rb") as file:
        assert reader.partial_structure(Source(file, (tmp_path / "x").stat().st_size), name="x") is None
