"""Malicious files, and operations on each: none runs code, fills memory or raises an unclear error."""

from __future__ import annotations

import io
import pickle
import re
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fsspec.callbacks import NoOpCallback
from hypothesis import HealthCheck, settings
from torch.distributed.checkpoint.metadata import Metadata

from fsspec_csx import distributed
from fsspec_csx.checkpoint.api import inspect, load
from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.manage.convert import convert
from fsspec_csx.manage.diff import compare
from fsspec_csx.manage.verify import verify

MIB = 2**20
MOST_MEMORY = 200 * MIB
MOST_SECONDS = 60.0
"""A guard against a hang, on machines of any speed."""

_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
few = settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=_QUIET)
"""The examples of every run: always the same ones."""
many = settings(max_examples=3000, database=None, deadline=None, suppress_health_check=_QUIET)
"""Those of a long run: others each time."""


def looks(path: Path) -> dict[str, Callable[[], Any]]:
    """All ways to look at a checkpoint, by their names."""
    folder = path.parent
    return {
        "load": lambda: load(path, callback=NoOpCallback()),
        "keys": lambda: load(path, keys=lambda name: True, callback=NoOpCallback()),
        "meta": lambda: load(path, map_location="meta", callback=NoOpCallback()),
        "inspect": lambda: inspect(path),
        "verify": lambda: verify(path, callback=NoOpCallback()),
        "diff": lambda: compare(path, path, callback=NoOpCallback()),
        "torch": lambda: convert(path, folder / "converted.mdl", overwrite=True, callback=NoOpCallback()),
        "safetensors": lambda: convert(
            path, folder / "converted.safetensors", drop_values=True, overwrite=True, callback=NoOpCallback()
        ),
    }


def look(path: Path) -> dict[str, Exception | None]:
    """The errors of all looks at a checkpoint, None where there is none.

    Raises:
        AssertionError: if one takes long, or much memory.
        Exception: any that does not say what is wrong and what to do, which is a crash.
    """
    found: dict[str, Exception | None] = {}
    for name, attempt in looks(path).items():
        begun = time.monotonic()
        with little_memory():
            try:
                found[name] = _error_of(attempt)
            except NotImplementedError as error:  # of nested and quantized tensors torch has none without data
                assert name == "meta"
                found[name] = error
        assert time.monotonic() - begun < MOST_SECONDS, name
    return found


def _error_of(attempt: Callable[[], Any]) -> Exception | None:
    try:
        attempt()
    except CheckpointError as error:
        return error if error.reason and error.remedy else AssertionError(error)
    except ValueError as error:
        if "cannot become a safetensors file" not in str(error) and "A safetensors file cannot hold" not in str(error):
            raise
        return error
    return None


@contextmanager
def little_memory(most: int = MOST_MEMORY) -> Iterator[None]:
    """Sees to it that the block takes little memory at any moment."""
    Path("/proc/self/clear_refs").write_text("5")  # the most so far becomes the present use
    before = _status("VmRSS")
    yield
    assert _status("VmHWM") - before < most


def _status(name: str) -> int:
    (found,) = re.findall(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found) * 1024


# -- torch files -------------------------------------------------------------------------------------------------------


class Call:
    """What a pickle has called when it is read.

    Args:
        function: what is called.
        arguments: with which arguments.
        state: what the result's state is set to.
    """

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self._made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self._made


class Storage:
    """What a pickle says of a storage.

    Args:
        numel: how many elements it has.
        key: of its record.
        location: its device.
    """

    def __init__(self, numel: Any = 4, key: Any = "0", location: Any = "cpu") -> None:
        self.report = ("storage", torch.FloatStorage, key, location, numel)


class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """The one written in Python, which leaves persistent ids as they are."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.report if isinstance(obj, Storage) else None


def pickled(obj: Any, protocol: int = 2) -> bytes:
    """A pickle as torch.save makes it."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol).dump(obj)
    return buffer.getvalue()


def tensor(size: Any = (4,), stride: Any = (1,), offset: Any = 0, storage: Storage | None = None) -> Call:
    """A tensor in a pickle."""
    hooks: OrderedDict[str, Any] = OrderedDict()
    return Call(torch._utils._rebuild_tensor_v2, storage or Storage(), offset, size, stride, False, hooks)


def archive(obj: Any, records: Mapping[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A torch file of an object, or of the bytes of a pickle, with one record of 16 bytes unless others are given."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        file.writestr("x/data.pkl", obj if isinstance(obj, bytes) else pickled(obj))
        file.writestr("x/byteorder", "little")
        for key, data in ({"0": bytes(16)} if records is None else records).items():
            file.writestr(f"x/data/{key}", data)
        file.writestr("x/version", "3\n")
    return buffer.getvalue()


def sharded(folder: Path, change: Callable[[Metadata], object]) -> Path:
    """A sharded checkpoint whose manifest was changed."""
    distributed.save({"x": torch.ones(3), "y": 5}, folder)
    found = manifest.read(ShardedFolder(None, str(folder), "x"))
    change(found)
    (folder / ".metadata").write_bytes(pickle.dumps(found))
    return folder
