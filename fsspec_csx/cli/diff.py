"""Compare two checkpoints, of any format: names, types, shapes, dtypes and values. The exit status is 1 if they differ.

diff checkpoint_100.mdl s3://bucket/run/checkpoint_100.mdl
diff a.mdl b.safetensors --tensor-comparison-op allclose --rtol 1e-3
"""

from __future__ import annotations

import argparse
from functools import partial

from fsspec_csx.cli.errors import DIFFERENT, DONE
from fsspec_csx.cli.output import display_name, emit, pluralize, print_status
from fsspec_csx.cli.subcommand import Verbs, add_path, add_verb, expand_one, number, progress_of
from fsspec_csx.formats.checkpoint_info import Difference
from fsspec_csx.manage.diff import ATOL, OPERATIONS, RTOL, compare


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "diff", _diff, __doc__, help="compare two checkpoints")
    add_path(parser, "first", "a local path or a URL of a checkpoint, a file or a folder")
    add_path(parser, "second", "the checkpoint to compare with")
    parser.add_argument(
        *("--tensor-comparison-op", "--tensor_comparison_op"),
        choices=OPERATIONS,
        help="how to compare elements: exactly, or within the tolerances (the default if one is given)",
    )
    tolerance = partial(number, least=0)
    parser.add_argument(
        "--rtol", type=tolerance, help=f"relative tolerance of allclose, relative to the second (default: {RTOL})"
    )
    parser.add_argument("--atol", type=tolerance, help=f"absolute tolerance of allclose (default: {ATOL})")


def _diff(options: argparse.Namespace) -> int:
    op = options.tensor_comparison_op
    given = {name: value for name in ("rtol", "atol") if (value := getattr(options, name)) is not None}
    if given and op == "equal":
        options.parser.error("equal allows no tolerance: --rtol and --atol need allclose")
    op = op or ("allclose" if given else "equal")
    callback = progress_of(options)
    found = compare(expand_one(options.first), expand_one(options.second), op=op, **given, callback=callback)
    lines = [_line(each) for each in found.differences]
    if found.differences:
        lines.append(f"Found {pluralize(len(lines), 'difference')}.")
    emit(options, found.differences, lines)
    if not found.differences:
        held = f"{pluralize(found.tensors, 'tensor')} and {pluralize(found.values, 'other value')}"
        print_status(options, f"Checkpoints match: {held}.")
    return DIFFERENT if found.differences else DONE


def _line(each: Difference) -> str:
    name = display_name(each.name)
    if each.elements is not None:
        count = f"{each.elements} of {pluralize(each.total or 0, 'element')}"
        verb = "differs" if each.elements == 1 else "differ"
        return f"{name}: {count} {verb}, by at most {_short(each.absolute)} (relative: {_short(each.relative)})"
    if each.first is None or each.second is None:
        return f"{name}: {each.what} ({each.first or each.second})"
    return f"{name}: {each.what} {each.first} and {each.second}"


def _short(value: float | None) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
