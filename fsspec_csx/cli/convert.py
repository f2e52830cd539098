"""Convert a checkpoint to another format or dtype, or extract a part of it. Tensors are streamed,
so that a checkpoint of any size needs little memory; only the target format cerebras loads all of them.
The result appears complete or not at all. The formats distributed, huggingface and cerebras are folders.

convert model.mdl model.safetensors --drop-values
convert s3://bucket/run/checkpoint_100.mdl s3://bucket/export/ --dtype bfloat16 --keys model
convert --keys model.head optimizer s3://bucket/run/sharded_100 model.mdl
convert model.mdl s3://bucket/run/model.mdl --format cerebras
"""

from __future__ import annotations

import argparse

from fsspec_csx.cli.output import emit, in_bytes, pluralize, print_status
from fsspec_csx.cli.subcommand import Verbs, add_path, add_verb, expand_paths, progress_of
from fsspec_csx.errors import few
from fsspec_csx.manage.convert import DTYPES, FORMATS, ConvertResult, convert
from fsspec_csx.manage.location import needs_source_name

_NAMES_SHOWN = 20


def add(verbs: Verbs) -> None:
    summary = "convert a checkpoint to another format or dtype, or extract a part"
    parser = add_verb(verbs, "convert", _convert, __doc__, help=summary)
    add_path(parser, "source", "a local path, a URL, or a quoted pattern")
    target = "a local path or a URL; a target that is a folder, or ends in a slash, takes the source's name"
    add_path(parser, "target", target)
    parser.add_argument("--dtype", choices=DTYPES, help="cast floating-point tensors")
    parser.add_argument(
        "--keys",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="only these entries, and everything below them: model.head.weight, optimizer",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="default: that of the suffix, otherwise torch; distributed means torch.distributed.checkpoint",
    )
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", help="of the files of the format huggingface (default: 5GB)"
    )
    parser.add_argument("--drop-values", action="store_true", help="omit values that a safetensors file cannot hold")
    parser.add_argument("-f", "--force", action="store_true", help="replace a checkpoint at the target")


def _convert(options: argparse.Namespace) -> None:
    sources = expand_paths([options.source])
    if len(sources) > 1 and not needs_source_name(options.target):
        options.parser.error(f"several sources need a folder as the target: end {options.target} with a slash")
    done: list[ConvertResult] = []
    options.done = {"converted": done}
    for each in sources:
        converted = convert(
            each,
            options.target,
            dtype=options.dtype,
            keys=options.keys,
            format=options.format,
            drop_values=options.drop_values,
            overwrite=options.force,
            max_shard_size=options.max_shard_size,
            callback=progress_of(options),
        )
        done.append(converted)
        for line in _describe(each, converted):
            print_status(options, line)
    emit(options, done[0] if len(done) == 1 else options.done)


def _describe(source: str, converted: ConvertResult) -> list[str]:
    cast = f", {converted.cast} of them cast" if converted.cast else ""
    held = f"{pluralize(converted.tensors, 'tensor')}{cast}, {in_bytes(converted.size)}"
    lines = [f"Converted {source} to {converted.path} ({held})"]
    if converted.dropped:
        lines.append(f"Omitted, not tensors: {_listed(converted.dropped)}")
    if converted.separated:
        lines.append(f"Written as copies, shared memory with others: {_listed(converted.separated)}")
    if converted.overflowed:
        lines.append(f"Overflowed to infinity in the new dtype: {_listed(converted.overflowed)}")
    return lines


def _listed(names: tuple[str, ...]) -> str:
    return few(names, most=_NAMES_SHOWN) + (" (see --json)" if len(names) > _NAMES_SHOWN else "")
