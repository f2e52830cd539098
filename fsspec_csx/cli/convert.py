"""``cszoo checkpoint convert``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from fsspec.callbacks import NoOpCallback

from fsspec_csx.cli.format import emit_data, in_bytes, say
from fsspec_csx.cli.subcommand import Verbs, add_path, all_fitting
from fsspec_csx.manage.convert import DTYPES, FORMATS, Converted, convert
from fsspec_csx.manage.copy import takes_names
from fsspec_csx.storage.paths import redacted

_NAMES_SHOWN = 20


def add(verbs: Verbs) -> None:
    """The verb."""
    parser = verbs.add(
        "convert",
        _convert,
        help="write a checkpoint in another format or dtype, or a part of it",
        description="Write a checkpoint in another format or dtype, or a part of it. Its tensors are read while they "
        "are written,\nso that one of any size needs little memory. The result appears whole or not at all.\n"
        "The formats distributed and cerebras are folders; what becomes one of cerebras is in memory.",
        examples="""
convert model.mdl model.safetensors --drop-values
convert s3://bucket/run/checkpoint_100.mdl s3://bucket/export/ --dtype bfloat16 --keys model
convert --keys model.head optimizer s3://bucket/run/sharded_100 model.mdl
convert model.mdl s3://bucket/run/model.mdl --format cerebras
""",
    )
    parser.set_defaults(parser=parser)
    add_path(parser, "source", "a local path or a URL; a pattern too, in quotes")
    target = "a local path or a URL; one that ends in a slash, or is a local folder, takes the source's name"
    add_path(parser, "target", target)
    parser.add_argument("--dtype", choices=DTYPES, help="cast tensors of floating-point numbers")
    parser.add_argument(
        "--keys",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="only these entries, or all that is below them: model.head.weight, optimizer",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="default: safetensors for that suffix, else torch; distributed is that of torch.distributed.checkpoint",
    )
    parser.add_argument("--drop-values", action="store_true", help="leave out what a safetensors file cannot hold")
    parser.add_argument("-f", "--force", action="store_true", help="replace a checkpoint at the target")


def _convert(options: argparse.Namespace) -> None:
    sources = all_fitting([options.source])
    if len(sources) > 1 and not takes_names(options.target):
        options.parser.error(f"several sources need a folder as target: end {options.target} with a slash")
    done: list[dict[str, Any]] = []
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
            callback=NoOpCallback() if options.quiet else None,
        )
        done.append(asdict(converted))
        for line in _told(redacted(each), converted):
            say(options, line)
    emit_data(options, done[0] if len(done) == 1 else options.done)


def _told(source: str, converted: Converted) -> list[str]:
    count = f"{converted.tensors} tensor{'' if converted.tensors == 1 else 's'}"
    cast = f", {converted.cast} of them cast" if converted.cast else ""
    lines = [f"Converted {source} to {converted.path} ({count}{cast}, {in_bytes(converted.size)})"]
    if converted.dropped:
        lines.append(f"Left out, as no tensors: {_listed(converted.dropped)}")
    if converted.separated:
        lines.append(f"Written as copies, as they shared memory with others: {_listed(converted.separated)}")
    if converted.overflowed:
        lines.append(f"Infinite in part, as the dtype has no such large numbers: {_listed(converted.overflowed)}")
    return lines


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more, which --json lists" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
