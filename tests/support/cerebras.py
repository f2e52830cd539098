"""Helpers of the tests of Cerebras checkpoints.

The folders of ``data/cerebras`` are what cerebras_pytorch 2.10.0 wrote, one case each: ``s3`` has the bytes of the
objects, ``objects.json`` their user metadata, ``metadata_decoded.json`` the ``__METADATA__``, ``state.pt`` the same
state dict by torch.save, and ``local.mdl`` its HDF5 form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fsspec_csx.formats.cerebras.metadata import encoded
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.tensors import names

DATA = Path(__file__).parents[1] / "data" / "cerebras"
PICKLES = {
    "nested": ["objs.bytes", "objs.complex", "objs.datetime", "objs.path", "objs.dtype"],
    "nested_compressed": ["objs.bytes", "objs.complex", "objs.datetime", "objs.path", "objs.dtype"],
    "tied": ["same_obj", "same_obj2"],
}
"""The values of a case that are pickles."""


def objects(case: str) -> dict[str, bytes]:
    """The objects of a case by their keys."""
    folder = DATA / case / "s3"
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def headers(case: str) -> dict[str, dict[str, str]]:
    """The user metadata of the objects of a case."""
    report = json.loads((DATA / case / "objects.json").read_text())
    return {key: each["user_metadata"] for key, each in report.items()}


def metadata(case: str) -> dict[str, Any]:
    """The metadata of a case."""
    found: dict[str, Any] = json.loads((DATA / case / "metadata_decoded.json").read_text())
    return found


def upload(fs: CSXFileSystem, case: str, path: str) -> str:
    """The URL of a case on S3, where it is put at this path."""
    report = headers(case)
    for key, data in objects(case).items():
        fs.pipe_file(f"{path}/{key}", data, **({"Metadata": report[key]} if report[key] else {}))
    return f"s3://{path}"


def expected(case: str) -> Any:
    """What a case holds, less its pickles."""
    whole = torch.load(DATA / case / "state.pt", weights_only=False)  # ours, and with dates and arrays in it
    return names.select(whole, names.Choice(whole, readable(case), case))


def readable(case: str) -> Any:
    """The keys of a case that are no pickles; None for all."""
    return (lambda name: name not in PICKLES[case]) if case in PICKLES else None


def changed(folder: Path, case: str, **entries: Any) -> Path:
    """A folder with a case whose metadata has other entries; those that are None are taken out."""
    report = {key: value for key, value in {**metadata(case), **entries}.items() if value is not None}
    for key, data in {**objects(case), "__METADATA__": encoded(report)}.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    return folder


def report(case: str, key: str, /, **entries: Any) -> dict[str, str]:
    """The entry of a value, with other entries of its own."""
    leaf = f"{key}.__metadata__"
    entry = json.loads(metadata(case)[leaf])
    entry[leaf] |= entries
    return {leaf: json.dumps(entry)}


def same(first: Any, second: Any) -> bool:
    """Equal in nesting, types and bytes."""
    if isinstance(first, torch.Tensor):
        return (
            isinstance(second, torch.Tensor)
            and first.dtype == second.dtype
            and first.shape == second.shape
            and bool(torch.equal(_bytes(first), _bytes(second)))
        )
    if isinstance(first, np.ndarray):
        return type(second) is np.ndarray and first.dtype == second.dtype and first.tobytes() == second.tobytes()
    if isinstance(first, dict):
        return (
            type(first) is type(second)
            and list(first) == list(second)
            and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and repr(first) == repr(second)  # NaN too


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.empty(0)
