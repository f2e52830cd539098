"""Show what a checkpoint holds, and where it is. Only a few short ranges are read.

info s3://bucket/run/checkpoint_100.mdl
info -l model.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from typing import Any

from fsspec_csx.cli.output import display_name, emit, in_bytes, table
from fsspec_csx.cli.subcommand import Verbs, add_path, add_verb, expand_paths
from fsspec_csx.formats.checkpoint_info import TensorInfo
from fsspec_csx.manage.info import Description, describe

_TEXT_SHOWN = 200


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "info", _info, __doc__, help="show what a checkpoint holds, from a few short reads")
    add_path(parser, "path", "a local path, a URL, or a quoted pattern, of a file or a folder")
    parser.add_argument(
        *("-l", "--list-objects", "--list_objects"),
        action="store_true",
        help="also list each tensor and each other value",
    )


def _info(options: argparse.Namespace) -> None:
    paths = expand_paths([options.path])
    if options.json:
        data = [_as_data(describe(path), all=options.list_objects) for path in paths]
        emit(options, data[0] if len(data) == 1 else data)
        return
    for number, path in enumerate(paths):
        found = describe(path)
        objects = _objects(found) if options.list_objects else []
        emit(options, None, [*[""] * bool(number), *_lines(found), *objects])


def _as_data(found: Description, *, all: bool) -> dict[str, Any]:
    info = found.info
    values = _values(found)
    data: dict[str, Any] = {
        **{name: getattr(info, name) for name in ("path", "format", "written_by", "size", "metadata")},
        "tensors": len(info.tensors),
        "parameters": _count(info.tensors.values()),
        "tensor_bytes": sum(each.nbytes for each in info.tensors.values()),
        "values": len(values),
        "dtypes": _dtypes(info.tensors.values()),
        **{field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name != "info"},
    }
    if all:
        data["objects"] = [
            {"name": name, "dtype": _dtype(each), "shape": each.shape, "bytes": each.nbytes}
            for name, each in info.tensors.items()
        ] + [{"name": name, "value": text} for name, text in values.items()]
    return data


def _values(found: Description) -> dict[str, str]:
    from fsspec_csx.tensors.summaries import short  # only here, as it imports torch

    return {name: short(value) for name, value in found.info.values.items()}


def _lines(found: Description) -> list[str]:
    info = found.info
    dtypes = _dtypes(info.tensors.values())
    size = in_bytes(info.size)
    of_tensors = sum(each.nbytes for each in info.tensors.values())
    # The metadata of torch files is only the writer.
    metadata = info.metadata if info.format in ("safetensors", "huggingface") else {}
    rows = [
        ("Path", info.path),
        ("Format", info.format),
        ("Written by", info.written_by),
        *(("Metadata", f"{display_name(name)}: {display_name(text[:_TEXT_SHOWN])}") for name, text in metadata.items()),
        ("Size", size if info.size < 1024 else f"{size} ({info.size} bytes)"),
        ("Tensors", f"{len(info.tensors)} ({_count(info.tensors.values())} parameters, {in_bytes(of_tensors)})"),
        *(("", f"{dtype}: {each['tensors']} ({in_bytes(each['bytes'])})") for dtype, each in dtypes.items()),
        ("Other values", str(len(info.values))),
        ("Last modified", found.modified.isoformat(sep=" ", timespec="seconds") if found.modified else "unknown"),
        ("ETag", found.etag or ""),
        ("Profile", (found.profile or "none") if found.credentials else ""),
        ("Credentials", found.credentials or ""),
        ("Endpoint", found.endpoint or ""),
    ]
    return table([(f"{name}:" if name else "", text) for name, text in rows if text])


def _objects(found: Description) -> list[str]:
    tensors = [
        (display_name(name), _dtype(each), str(each.shape), in_bytes(each.nbytes))
        for name, each in found.info.tensors.items()
    ]
    others = [(display_name(name), text) for name, text in _values(found).items()]
    lines = ["", *table([("Tensor", "dtype", "shape", "size"), *tensors], right=[3])] if tensors else []
    return [*lines, "", *table([("Value", ""), *others])] if others else lines


def _dtypes(tensors: Any) -> dict[str, dict[str, int]]:
    """Count the tensors of each dtype and their bytes, the most bytes first."""
    counts, sizes = Counter[str](), Counter[str]()
    for each in tensors:
        counts[_dtype(each)] += 1
        sizes[_dtype(each)] += each.nbytes
    return {dtype: {"tensors": counts[dtype], "bytes": size} for dtype, size in sizes.most_common()}


def _count(tensors: Any) -> int:
    return sum(each.numel for each in tensors)


def _dtype(tensor: TensorInfo) -> str:
    return str(tensor.dtype).removeprefix("torch.")
