"""The errors of load for unsafe files and files that are not checkpoints; errors of storage are raised unchanged."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import pickle
import random
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import STATE, Point, put, saved, unzipped, zipped
from thinning import thinned

from fsspec_csx.checkpoint.api import load
from fsspec_csx.errors import InvalidCheckpointError, UnsafeCheckpointError


def tarred(names: list[str]) -> bytes:
    """A tar archive of empty files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def array() -> bytes:
    """What numpy.save writes."""
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    return buffer.getvalue()


FOREIGN = {
    "is empty (0 bytes)": b"",
    "is an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "is a gzip file": gzip.compress(saved()),
    "is a bzip2 file": bz2.compress(saved()),
    "is an xz file": lzma.compress(saved()),
    "is a zstd file": bytes.fromhex("28b52ffd2400010000") + bytes(9),
    "is a tar archive": tarred(["a", "b"]),
    "is a plain pickle, which torch.save did not write": pickle.dumps({"a": 1}),
    "is a plain pickle": pickle.dumps({"a": 1}, protocol=2),
    "is a NumPy array": array(),
    "is a Git LFS pointer, not the file itself": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
    "is an HTML or XML page (first bytes '<!DOCTYPE html>')": b"\n<!DOCTYPE html>\n<html>\n",
    "is an HTML or XML page (first bytes '<?xml version": b'\xef\xbb\xbf<?xml version="1.0"?><Error/>',
    "is text (first bytes 'größe')": "größe\nsecret".encode(),
    "is text": ("a" + "é" * 1000).encode(),
    "is of an unknown format (first bytes 00 01 02 ff)": b"\x00\x01\x02\xff",
    "is an empty zip archive": zipped({}),
    "is a zip archive that is not a torch checkpoint (its first entry is 'a.txt')": zipped({"a.txt": b"hi"}),
    "is a zip archive that is not a torch checkpoint (its first entry is 'd/a')": zipped({"d/a": b"hi"}),
    "looks like a torch checkpoint cut short after 2 bytes": b"PK",
    "looks like a torch checkpoint cut short after 5 bytes": saved(_use_new_zipfile_serialization=False)[:5],
}


@pytest.mark.parametrize("found", FOREIGN)
def test_foreign_files(root: str, found: str) -> None:
    """A file that is no torch checkpoint is named together with what it is and what to do."""
    path = put(root, FOREIGN[found])
    with pytest.raises(InvalidCheckpointError) as caught:
        load(path)
    assert caught.value.reason.startswith(f"{path} {found}")
    assert caught.value.remedy


def test_little_of_a_text_is_shown(root: str) -> None:
    """Not more than the beginning of the first line is repeated."""
    with pytest.raises(InvalidCheckpointError) as caught:
        load(put(root, b"[default]\naws_secret_access_key = wJalrXUtnFEMI\n"))
    assert "wJalr" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")
def test_torchscript(root: str) -> None:
    """A TorchScript archive is named as such."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)
    with pytest.raises(InvalidCheckpointError, match=r"TorchScript archive.*torch\.jit\.load"):
        load(put(root, buffer.getvalue()))


@pytest.mark.parametrize("weights_only", thinned([True, False], True))
@pytest.mark.parametrize("zip_format", [True, False])
def test_cut_short(root: str, zip_format: bool, weights_only: bool) -> None:
    """A file cut short anywhere is reported as such, whatever torch stumbles over."""
    whole = saved(_use_new_zipfile_serialization=zip_format)
    lengths = [*range(1, 60), *range(60, len(whole), 97), *range(len(whole) - 60, len(whole))]
    for length in lengths[:: 10 if root.startswith("s3") else 1]:  # the way of the bytes makes no difference
        with pytest.raises(InvalidCheckpointError, match=r"cut short|is damaged"):
            load(put(root, whole[:length]), weights_only=weights_only)


@pytest.mark.parametrize("zip_format", [True, False])
def test_flipped_bits(root: str, zip_format: bool) -> None:
    """A flipped bit in what is not tensor data is either harmless or reported as an error of the file."""
    whole = saved({"x": torch.arange(3), "y": [1, "a", (None, 2.0)]}, _use_new_zipfile_serialization=zip_format)
    generator = random.Random(1)
    location = whole.index(b"cpu")
    for position in range(0, len(whole), 30 if root.startswith("s3") else 3):
        if location <= position < location + 3:
            continue  # another device is not the file's fault
        flipped = bytearray(whole)
        flipped[position] ^= 1 << generator.randrange(8)
        path = put(root, bytes(flipped))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(InvalidCheckpointError, UnsafeCheckpointError):
                load(path)


def test_missing_record(root: str) -> None:
    """An archive that lacks a tensor's record says which, and keeps torch's error as its cause."""
    entries = unzipped(saved())
    del entries["archive/data/1"]
    with pytest.raises(InvalidCheckpointError, match=r"is damaged .*data/1: file not found") as caught:
        load(put(root, zipped(entries)))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_record_of_another_size(root: str) -> None:
    """A record that is too short for its tensor is damage."""
    entries = {**unzipped(saved()), "archive/data/0": bytes(10)}
    with pytest.raises(InvalidCheckpointError, match=r"record size .10 bytes"):
        load(put(root, zipped(entries)))


@pytest.mark.parametrize("data", [b"", b"\x80\x02}", b"garbage", b"\x80\x02K"])
@pytest.mark.parametrize("weights_only", [True, False])
def test_bad_pickle(root: str, data: bytes, weights_only: bool) -> None:
    """An archive with a pickle that is none is damage."""
    entries = {**unzipped(saved()), "archive/data.pkl": data}
    with pytest.raises(InvalidCheckpointError, match="its pickle is not whole"):
        load(put(root, zipped(entries)), weights_only=weights_only)


# -- files that would run code -----------------------------------------------------------------------------------------


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zip_format", [True, False])
def test_hostile(root: str, tmp_path: Path, zip_format: bool) -> None:
    """A file that would run a command is refused by name, and the command does not run."""
    path = put(root, saved({"x": Hostile(tmp_path / "ran")}, _use_new_zipfile_serialization=zip_format))
    with pytest.raises(UnsafeCheckpointError) as caught:
        load(path)
    assert caught.value.reason == f"{path} names {os.name}.system, which could run code when loaded."
    assert "weights_only=False only if you trust its author" in caught.value.remedy
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("protocol", range(6))
def test_hostile_plain_pickle(root: str, tmp_path: Path, weights_only: bool, protocol: int) -> None:
    """A pickle that torch did not write is never run, also where code may."""
    with pytest.raises(InvalidCheckpointError):
        load(put(root, pickle.dumps(Hostile(tmp_path / "ran"), protocol)), weights_only=weights_only)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("weights_only", [True, False])
def test_hostile_tar(root: str, tmp_path: Path, weights_only: bool) -> None:
    """The tar format of torch before 0.2, which cannot be read safely, is not read."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Hostile(tmp_path / "ran"))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    with pytest.raises(InvalidCheckpointError, match="is a tar archive"):
        load(put(root, buffer.getvalue()), weights_only=weights_only)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zip_format", [True, False])
def test_class_of_ones_own(root: str, zip_format: bool) -> None:
    """A refused class is named as it has to be allowed, and loads once it is."""
    path = put(root, saved(Point(), _use_new_zipfile_serialization=zip_format))
    with pytest.raises(UnsafeCheckpointError, match=r"checkpoints\.Point.*add_safe_globals"):
        load(path)
    with torch.serialization.safe_globals([Point]):
        assert isinstance(load(path), Point)


def test_pickle_protocol_4(root: str) -> None:
    """A file saved with a newer pickle protocol is refused for that, not for being damaged."""
    path = put(root, saved(pickle_protocol=4))
    with (
        pytest.warns(UserWarning, match="Detected pickle protocol 4"),
        pytest.raises(UnsafeCheckpointError, match=r"is pickled with protocol 4"),
    ):
        load(path)
    assert load(path, weights_only=False)["z"] == STATE["z"]
