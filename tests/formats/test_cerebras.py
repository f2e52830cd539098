"""Cerebras checkpoints: those of cerebras_pytorch are read, and those of save are equal to them."""

from __future__ import annotations

import builtins
import importlib.util
import json
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import s3fs
import torch
from cerebras import DATA, PICKLES, changed, expected, headers, metadata, objects, readable, report, same, upload
from conftest import recorded_requests
from fsspec.callbacks import Callback

from fsspec_csx.checkpoint.api import inspect, load, save
from fsspec_csx.errors import (
    DtypeCastWarning,
    InvalidCheckpointError,
    MismatchError,
    MissingEntryError,
    UnsafeCheckpointError,
)
from fsspec_csx.formats.cerebras import folder as cerebras_folder
from fsspec_csx.formats.cerebras import format as cerebras_format
from fsspec_csx.formats.verify_report import Report
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.storage.folder import Folder
from fsspec_csx.tensors import fill
from fsspec_csx.testing import Identity, LocalS3

CASES = sorted(each.name for each in DATA.iterdir() if each.name not in ("external_link", "partial"))
FILES = sorted(each.parent.name for each in DATA.glob("*/local.mdl"))


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_real_checkpoint(case: str, environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """What the reference wrote to S3 is read as torch reads the same state dict."""
    url = upload(fs, case, f"{bucket}/x.mdl")
    assert same(load(url, keys=readable(case)), expected(case))


@pytest.mark.parametrize("case", CASES)
def test_local_folder(case: str) -> None:
    """The same objects as files of a local folder are the same checkpoint."""
    assert same(load(DATA / case / "s3", keys=readable(case)), expected(case))


@pytest.mark.parametrize("case", FILES)
def test_hdf5_file(case: str) -> None:
    """So is what the reference wrote to a local disk, a file."""
    assert same(load(DATA / case / "local.mdl", keys=readable(case)), expected(case))


def test_hdf5_into_other_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a dataset are read as well as all of it, and numbers of the other byte order as themselves."""
    monkeypatch.setattr(fill, "PIECE", 1000)
    whole = expected("weights_plain")
    doubles = {key: torch.zeros(tensor.shape, dtype=torch.float64) for key, tensor in whole.items()}
    path = tmp_path / "x.mdl"
    path.write_bytes((DATA / "weights_plain" / "local.mdl").read_bytes())
    with h5py.File(path, "r+") as file:
        del file["w"]
        file["w"] = whole["w"].numpy().astype(">f4")
    with pytest.warns(DtypeCastWarning):
        load(path, into=doubles)
    assert all(torch.equal(doubles[key].float(), whole[key]) for key in whole)
    assert same(load(path), whole)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["nested", "weights_compressed"])
def test_other_filesystems(case: str, server: LocalS3, fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """Filesystems that are not ours are read by what fsspec offers: memory, plain s3fs, a cache before S3."""
    memory = fsspec.filesystem("memory")
    for key, data in objects(case).items():
        memory.pipe_file(f"/{tmp_path.name}/{key}", data)
    assert same(load(f"memory://{tmp_path.name}", keys=readable(case)), expected(case))
    url = upload(fs, case, f"{bucket}/x.mdl")
    plain = s3fs.S3FileSystem(**server.storage_options(), skip_instance_cache=True)
    with cerebras_folder.opened(Folder(plain, f"{bucket}/x.mdl", "x")) as source:
        assert source is not None
        filled = source.tensors()
        source.read([(each.offset, _memory(each.storage)) for each in filled.records])
        whole = source.rebuild(filled.obj, weights_only=True)
    assert same(whole["dtypes" if case == "nested" else "w"], expected(case)["dtypes" if case == "nested" else "w"])
    options = {"s3": server.storage_options(), "simplecache": {"cache_storage": str(tmp_path / "cache")}}
    assert same(load(f"simplecache::{url}", keys=readable(case), storage_options=options), expected(case))


def _memory(storage: torch.UntypedStorage) -> memoryview:
    from fsspec_csx.tensors.source import memory_of

    return memory_of(storage)


def test_ties_are_one_object() -> None:
    """Links become the very same tensor, as in what was saved."""
    found = load(DATA / "tied" / "s3", keys=["emb", "head", "head_view", "nested"])
    assert found["emb"] is found["head"] is found["nested"]["again"]
    assert found["head_view"].data_ptr() != found["emb"].data_ptr()


def test_link_to_another_checkpoint(environment: LocalS3, fs: CSXFileSystem) -> None:
    """Tensors that were never looked at stay where they came from, and are read there, if that is on S3 too."""
    upload(fs, "weights_plain", "artefacts/weights_plain/ckpt.mdl")
    url = upload(fs, "external_link", "artefacts/external_link/ckpt.mdl")
    assert same(load(url), expected("external_link"))
    assert inspect(url).tensors["w"].shape == (64, 64)
    fs.rm("artefacts/weights_plain", recursive=True)
    with pytest.raises(InvalidCheckpointError, match=r"'w' \(.*artefacts/weights_plain"):
        load(url)


def test_link_in_a_circle(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A checkpoint whose tensors are said to be in itself, or in one that says the same, ends in an error."""
    text = json.dumps(metadata("external_link")).replace("artefacts/weights_plain/ckpt.mdl", f"{bucket}/x.mdl")
    fs.pipe_file(f"{bucket}/x.mdl/__METADATA__", pickle.dumps(json.loads(text)))
    with pytest.raises(InvalidCheckpointError, match="'w'"):
        load(f"s3://{bucket}/x.mdl")


def test_link_off_s3() -> None:
    """A local checkpoint that names tensors elsewhere does not make us go there."""
    with pytest.raises(InvalidCheckpointError, match="only one on S3"):
        load(DATA / "external_link" / "s3")


def test_unfinished_checkpoint() -> None:
    """What the reference did not finish is no checkpoint."""
    for look in (load, inspect):
        with pytest.raises(InvalidCheckpointError, match="not finished"):
            look(DATA / "partial" / "s3")


def test_nothing_there(root: str) -> None:
    """Where there is no checkpoint, neither file nor folder, the error is that of the file."""
    for look in (load, inspect):
        with pytest.raises(FileNotFoundError):
            look(f"{root}/missing.mdl")


def test_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    """A folder of something else is reported as before."""
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


@pytest.mark.parametrize("form", ["s3", "local.mdl"])
def test_pickles_are_refused_by_name(form: str) -> None:
    """An error names all values that are pickles; a load of other keys succeeds."""
    path = DATA / "nested" / form
    with pytest.raises(UnsafeCheckpointError) as caught:
        load(path)
    assert all(f"'{key}'" in str(caught.value) for key in PICKLES["nested"])
    assert "special" not in caught.value.reason
    assert same(load(path, keys=["special"])["special"], expected("nested")["special"])
    with pytest.raises(UnsafeCheckpointError, match=r"'objs\.path'"):
        load(path, keys=["objs.path", "special"])
    assert "pickle" in repr(inspect(path).values["objs.dtype"])


@pytest.mark.parametrize("case", ["nested", "nested_compressed"])
def test_pickles_of_an_author_who_is_trusted(case: str) -> None:
    """With ``weights_only=False`` they are unpickled; those that need a package that is missing are named."""
    path = DATA / case / "s3"
    found = load(path, keys=["objs.bytes", "objs.path", "objs.dtype"], weights_only=False)
    assert found["objs"]["bytes"] == b"\x00\x01\xff"
    assert found["objs"]["dtype"] is torch.float32
    if importlib.util.find_spec("dill"):
        assert load(path, weights_only=False)["objs"]["complex"] == 1 + 2j
        return
    with pytest.raises(InvalidCheckpointError, match=r"'objs\.complex' \(pickle that needs the package dill\)"):
        load(path, weights_only=False)


@pytest.mark.parametrize("form", ["s3", "local.mdl"])
def test_keys(form: str) -> None:
    """Names choose, and a tie is read by any of its names."""
    path = DATA / "tied" / form
    found = load(path, keys=["head", "nested"])
    assert found["head"] is found["nested"]["again"]
    assert torch.equal(found["head"], expected("tied")["emb"])
    with pytest.raises(MissingEntryError, match="embb"):
        load(path, keys=["embb"])


@pytest.mark.slow
def test_only_what_is_asked_for_is_read(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A part of a checkpoint costs requests for that part, and no look at what the metadata says already."""
    url = upload(fs, "optimizer", f"{bucket}/x.mdl")
    with recorded_requests() as operations:
        load(url, keys=["model.head.weight", "rng"])
    assert operations.count("GetObject") == 3
    with recorded_requests() as operations:
        info = inspect(url)
    assert operations.count("GetObject") == 1
    assert len(operations) < 8
    assert info.format == "cerebras"
    assert info.tensors["optimizer.state.4.exp_avg"].shape == (6,)
    assert info.values["optimizer.param_groups.0.betas.0"] == 0.9


@pytest.mark.parametrize("case", ["bf16", "weights_compressed"])
def test_into(case: str) -> None:
    """Tensors that are there already take the values, in their own dtype."""
    whole = expected(case)
    into = {key: torch.zeros_like(tensor) for key, tensor in whole.items()}
    before = {key: tensor.data_ptr() for key, tensor in into.items()}
    assert load(DATA / case / "s3", into=into) is into
    assert same(into, whole)
    assert {key: tensor.data_ptr() for key, tensor in into.items()} == before
    doubles = {key: torch.zeros(tensor.shape, dtype=torch.float64) for key, tensor in whole.items()}
    with pytest.warns(DtypeCastWarning):
        load(DATA / case / "s3", into=doubles)
    assert all(torch.equal(doubles[key].to(whole[key].dtype).view(torch.uint8), whole[key].view(torch.uint8)) or
               whole[key].isnan().any() for key in whole)  # fmt: skip
    with pytest.raises(MismatchError, match="lacks 'more'"):
        load(DATA / case / "s3", into={**into, "more": torch.zeros(1)})


def test_into_refuses_pickles() -> None:
    """Values that are not read do not get into a state dict."""
    into = {"emb": torch.zeros(4, 3), "same_obj": b""}
    with pytest.raises(UnsafeCheckpointError, match="same_obj"):
        load(DATA / "tied" / "s3", keys=["emb", "same_obj"], into=into)
    assert not into["emb"].any()


@pytest.mark.parametrize("where", ["meta", torch.device("meta"), lambda storage, location: storage])
def test_map_location(where: Any) -> None:
    """Tensors go where they are sent, ties as one."""
    found = load(DATA / "tied" / "s3", keys=["emb", "head"], map_location=where)
    assert found["emb"] is found["head"]
    if callable(where):
        assert torch.equal(found["emb"], expected("tied")["emb"])
    else:
        assert found["emb"].device.type == "meta"


def test_progress(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """The callback gets the bytes of all tensors, compressed or not."""
    url = upload(fs, "weights_compressed", f"{bucket}/x.mdl")
    callback = Callback()
    load(url, callback=callback)
    assert callback.size == callback.value == 64 * 64 * 4 + 128 * 128 * 4


def test_file_beside_a_folder(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """An object of the very name is what is loaded."""
    url = upload(fs, "weights_plain", f"{bucket}/x.mdl")
    save({"a": 1}, url)
    assert load(url) == {"a": 1}


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the packages that read a compressed or an HDF5 checkpoint, the error says what to install."""
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("backports", "compression", "h5py"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for path in (DATA / "weights_compressed" / "s3", DATA / "weights_plain" / "local.mdl"):
        with pytest.raises(ModuleNotFoundError, match=r"Install 'fsspec-csx\[cerebras\]'"):
            load(path)


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_protocols(tmp_path: Path, protocol: int) -> None:
    """Metadata in any protocol of pickle is read, as by the reference."""
    folder = changed(tmp_path / "x", "bf16")
    (folder / "__METADATA__").write_bytes(pickle.dumps({**metadata("bf16"), "more": 1, "none": None}, protocol))
    assert same(load(folder), expected("bf16"))


def test_saved_anew_meanwhile(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A checkpoint that is replaced while it is read is an error, not a mixture."""
    url = upload(fs, "weights_plain", f"{bucket}/x.mdl")

    class Replacing(Callback):  # type: ignore[misc]
        def set_size(self, size: int) -> None:
            super().set_size(size)
            state = {key: torch.zeros_like(tensor) for key, tensor in expected("weights_plain").items()}
            save(state, url, format="cerebras")

    with pytest.raises(InvalidCheckpointError, match="saved anew"):
        load(url, callback=Replacing())
    assert not load(url)["w"].any()


# -- writing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*CASES, "external_link"])
def test_round_trip(case: str, environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """What is written is read again as it was."""
    state = expected(case)
    save(state, f"s3://{bucket}/x.mdl", format="cerebras")
    assert same(load(f"s3://{bucket}/x.mdl"), state)


@pytest.mark.parametrize("case", ["nested", "tied", "optimizer", "bf16", "trainer", "toplevel_list", "empty_dict"])
def test_the_same_as_the_reference(case: str, environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """Objects, their headers and the metadata are those of the reference, but for pickles, and our one entry more."""
    save(load(DATA / case / "s3", keys=readable(case)), f"s3://{bucket}/x.mdl", format="cerebras")
    left_out = PICKLES.get(case, [])
    theirs = {key: data for key, data in objects(case).items() if key not in left_out}
    for key in theirs.keys() - {"__METADATA__"}:
        assert fs.cat_file(f"{bucket}/x.mdl/{key}") == theirs[key], key
        assert fs.call_s3("head_object", Bucket=bucket, Key=f"x.mdl/{key}")["Metadata"] == headers(case)[key], key
    assert fs.find(f"{bucket}/x.mdl") == sorted(f"{bucket}/x.mdl/{key}" for key in theirs)
    ours = pickle.loads(fs.cat_file(f"{bucket}/x.mdl/__METADATA__"))
    own = json.loads(ours.pop("__fsspec_csx__"))
    assert own["crc32"].keys() == theirs.keys() - {"__METADATA__"}
    entries = {key: value for key, value in metadata(case).items() if key.removesuffix(".__metadata__") not in left_out}
    if left_out:
        del ours["__spec__"], entries["__spec__"]
    assert ours == entries


def test_tensors_that_do_not_lie_as_they_are_saved(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """Views, parameters and NumPy arrays of any strides are written in order."""
    whole = torch.arange(24.0).reshape(4, 6)
    state = {
        "transposed": whole.T,
        "strided": whole[::2, 1::2],
        "expanded": torch.ones(1).expand(3, 2),
        "negated": torch.view_as_complex(whole.reshape(12, 2)).conj().imag,
        "parameter": torch.nn.Parameter(whole[1]),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3).T,
        "int8": torch.arange(3, dtype=torch.int8),
    }
    save(state, f"s3://{bucket}/x.mdl", format="cerebras")
    found = load(f"s3://{bucket}/x.mdl")
    assert same({**found, "parameter": found["parameter"].detach()}, {**state, "parameter": whole[1]})


def test_large_tensor(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A tensor of several parts has its header too, and comes back."""
    state = {"w": torch.randn(5, 2**20)}
    save(state, f"s3://{bucket}/x.mdl", format="cerebras")
    assert same(load(f"s3://{bucket}/x.mdl"), state)
    assert "metadata" in fs.call_s3("head_object", Bucket=bucket, Key="x.mdl/w")["Metadata"]


def test_overwriting(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A new checkpoint leaves nothing of the former one, and nothing of others that are called alike is touched."""
    url = f"s3://{bucket}/x.mdl"
    save({"a": torch.ones(3), "w*": torch.ones(1), "old": torch.ones(2)}, url, format="cerebras")
    save({"a": 1}, f"{url}0", format="cerebras")
    save({"a": torch.zeros(3), "w1": torch.ones(1)}, url, format="cerebras")
    assert same(load(url), {"a": torch.zeros(3), "w1": torch.ones(1)})
    assert fs.find(f"{bucket}/x.mdl") == [f"{bucket}/x.mdl/{key}" for key in ("__METADATA__", "a", "w1")]
    assert load(f"{url}0") == {"a": 1}


def test_broken_off(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A save that fails on the way leaves no checkpoint, neither the old nor a mixture, and a next one heals it."""
    url = f"s3://{bucket}/x.mdl"
    state = {f"w{number}": torch.full((10,), float(number)) for number in range(30)}
    save(state, url, format="cerebras")

    class Failing(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            raise KeyboardInterrupt

    large = {**state, "large": torch.ones(2**18)}
    with pytest.raises(KeyboardInterrupt):
        save(large, url, format="cerebras", callback=Failing())
    with pytest.raises(InvalidCheckpointError, match="not finished"):
        load(url)
    save(large, url, format="cerebras")
    assert same(load(url), large)


def test_what_cannot_be_read_back(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """All that is wrong is named before anything is written, and what was there stays."""
    url = f"s3://{bucket}/x.mdl"
    save({"a": 1}, url, format="cerebras")
    itself: list[Any] = []
    itself.append(itself)
    wrong = {
        "bytes": b"x",
        "complex": 1j,
        "dtype": torch.float32,
        "sizes": torch.Size([1]),
        "sparse": torch.eye(2).to_sparse(),
        "complex64": torch.zeros(1, dtype=torch.complex64),
        "meta": torch.zeros(1, device="meta"),
        "half of a pair \ud800": 1,
        "texts": np.array(["a"]),
        "two": defaultdict(list, a=[1], b=[2]),
        "keys": {(1, 2): 3},
        "long": 1 << 10000,
        "itself": itself,
        "__METADATA__": 1,
        "up/../..": 1,
        "dotted.name": 1,
        "dotted": {"name": 2},
        "fine": 1.5,
    }
    with pytest.raises(ValueError, match="A Cerebras checkpoint cannot hold") as caught:
        save(wrong, url, format="cerebras")
    for key in wrong.keys() - {"dotted", "fine"}:
        assert f"'{key.partition(chr(0xD800))[0]}" in str(caught.value), key
    assert "fine" not in str(caught.value)
    assert load(url) == {"a": 1}
    with pytest.raises(ValueError, match="names of more than 1024 bytes"):
        save({"a" * 1100: torch.ones(1)}, url, format="cerebras")
    assert load(url) == {"a": 1}
    with pytest.raises(ValueError, match="not a Tensor"):
        save(torch.ones(1), url, format="cerebras")


def test_containers(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """Containers keep their kinds, and keys theirs."""
    state = {
        "ordered": OrderedDict(b=1, a=2),
        "default": defaultdict(int, x=1),
        "factory": defaultdict(list).default_factory and defaultdict(list),
        "tuple": (1, [2, (3,)], {}),
        "numbers": {0: "a", 1.5: "b", None: "c", True: "d"},
        "a/b": "",
        "é?#%+*": float("-inf"),
    }
    save(state, f"s3://{bucket}/x.mdl", format="cerebras")
    found = load(f"s3://{bucket}/x.mdl")
    assert same(found, state)
    assert found["default"].default_factory is int
    assert list(found["numbers"]) == [0, 1.5, None, True]


def test_elsewhere_than_s3(tmp_path: Path) -> None:
    """Only S3 has the headers that the reference needs."""
    for path in (tmp_path / "x.mdl", f"memory://{tmp_path.name}/x.mdl"):
        with pytest.raises(ValueError, match="only to S3"):
            save({"a": 1}, path, format="cerebras")
    assert not list(tmp_path.glob("x.mdl*"))
    with pytest.raises(ValueError, match="no format 'hdf5'"):
        save({"a": 1}, tmp_path / "x.mdl", format="hdf5")  # type: ignore[arg-type]


def test_object_in_the_way(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A checkpoint that is one object is not hidden behind a folder, nor lost."""
    save({"a": 1}, f"s3://{bucket}/x.mdl")
    with pytest.raises(FileExistsError, match=r"x\.mdl"):
        save({"a": 2}, f"s3://{bucket}/x.mdl", format="cerebras")
    assert load(f"s3://{bucket}/x.mdl") == {"a": 1}


def test_damage_is_seen(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """One flipped bit of what we wrote is an error that names the tensor."""
    save({"fine": torch.ones(4), "hurt": torch.ones(4)}, f"s3://{bucket}/x.mdl", format="cerebras")
    data = bytearray(fs.cat_file(f"{bucket}/x.mdl/hurt"))
    data[5] ^= 1
    fs.pipe_file(f"{bucket}/x.mdl/hurt", bytes(data))
    with pytest.raises(InvalidCheckpointError, match="'hurt'") as caught:
        load(f"s3://{bucket}/x.mdl")
    assert "fine" not in str(caught.value)


def test_lost_and_cut_objects(tmp_path: Path, environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """An object that is missing, or of another size, is an error that names it."""
    url = upload(fs, "weights_plain", f"{bucket}/x.mdl")
    fs.pipe_file(f"{bucket}/x.mdl/w", b"short")
    for path in (url, changed(tmp_path / "x", "weights_plain")):
        if path != url:
            (tmp_path / "x" / "w").write_bytes(b"long" * 10000)
        with pytest.raises(InvalidCheckpointError, match=r"x(\.mdl)?/w"):
            load(path)
    fs.rm_file(f"{bucket}/x.mdl/w")
    (tmp_path / "x" / "w").unlink()
    for path in (url, tmp_path / "x"):
        with pytest.raises(InvalidCheckpointError, match="missing"):
            load(path)
        assert load(path, keys=["z"]).keys() == {"z"}


def test_rights(environment: LocalS3, server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """Who may only read gets a PermissionError on save, and the checkpoint stays."""
    save({"a": 1}, f"s3://{bucket}/x.mdl", format="cerebras")
    reader = server.storage_options("reader")
    with pytest.raises(PermissionError):
        save({"a": 2}, f"s3://{bucket}/x.mdl", format="cerebras", storage_options=reader)
    assert load(f"s3://{bucket}/x.mdl", storage_options=reader) == {"a": 1}


def test_who_may_not_list(bucket: str) -> None:
    """Where S3 does not say whether an object exists, it is looked for below."""
    getter = Identity("getter", (f"Read:{bucket}",))
    with LocalS3(identities=[Identity.full("admin"), getter]) as own:
        mine = fsspec.filesystem("s3", **own.storage_options("admin"))
        upload(mine, "bf16", f"{bucket}/x.mdl")
        options = own.storage_options("getter")
        assert same(load(f"s3://{bucket}/x.mdl", storage_options=options), expected("bf16"))
        with pytest.raises((PermissionError, FileNotFoundError)):
            load(f"s3://{bucket}/y.mdl", storage_options=options)


def test_folder_of_others_is_not_replaced(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A save deletes the objects of the checkpoint that it replaces, and those of nothing else."""
    fs.pipe({f"{bucket}/run/checkpoint_1.mdl": b"one", f"{bucket}/run/checkpoint_10/x.safetensors": b"ten"})
    held = sorted(fs.find(bucket))
    with pytest.raises(FileExistsError, match="other files"):
        save({"a": torch.ones(2)}, f"s3://{bucket}/run", format="cerebras")
    assert sorted(fs.find(bucket)) == held


# -- for the commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [64 * 2**20, 1000])
def test_verify(
    batch: int, environment: LocalS3, fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What we wrote is compared with its checksums; what the reference wrote has none."""
    monkeypatch.setattr(cerebras_format, "_BATCH", batch)
    save(
        {"a": torch.randn(700), "empty": torch.ones(0), "b": torch.randn(300)},
        f"s3://{bucket}/x.mdl",
        format="cerebras",
    )
    with cerebras_folder.opened(Folder(fs, f"{bucket}/x.mdl", "x")) as source:
        assert source is not None
        assert cerebras_format.FORMAT.examine(source, "x", lambda memory, before: 0) == Report(3, 0)
    data = bytearray(fs.cat_file(f"{bucket}/x.mdl/a"))
    data[2000] ^= 1
    fs.pipe_file(f"{bucket}/x.mdl/a", bytes(data))
    with cerebras_folder.opened(Folder(fs, f"{bucket}/x.mdl", "x")) as source:
        assert source is not None
        assert cerebras_format.FORMAT.examine(source, "x", lambda memory, before: 0) == Report(
            3, 0, ["the checksum of 'a' is wrong"]
        )
    with cerebras_folder.opened(Folder(None, str(DATA / "tied" / "s3"), "x")) as source:
        assert source is not None
        note = "'same_obj', 'same_obj2': pickles, which may run any code, and so were not looked at"
        assert cerebras_format.FORMAT.examine(source, "x", lambda memory, before: 0) == Report(0, 4, [], [note])


def test_other_kinds_of_values(tmp_path: Path) -> None:
    """What the reference may write some day is named, and the rest is loaded."""
    folder = changed(tmp_path / "x", "weights_plain", **report("weights_plain", "w", __TYPE__="SparseSerializer"))
    with pytest.raises(InvalidCheckpointError, match=r"'w' \(SparseSerializer\)"):
        load(folder)
    assert load(folder, keys=["z"]).keys() == {"z"}
