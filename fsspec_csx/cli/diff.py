"""``cszoo checkpoint diff``."""

from __future__ import annotations

import argparse
import dataclasses
import math

from fsspec.callbacks import NoOpCallback

from fsspec_csx.cli.format import emit, say
from fsspec_csx.cli.subcommand import Verbs, add_path, one_fitting
from fsspec_csx.formats.checkpoint_info import Difference
from fsspec_csx.manage.diff import ATOL, OPERATIONS, RTOL, compare

_DIFFERENT = 1


def add(verbs: Verbs) -> None:
    """The verb."""
    parser = verbs.add(
        "diff",
        _diff,
        help="tell in what two checkpoints differ",
        description="Compare two checkpoints, of any format: names, types, shapes, dtypes and values. "
        "The exit status is 1 if they differ.",
        examples="""
diff checkpoint_100.mdl s3://bucket/run/checkpoint_100.mdl
diff a.mdl b.safetensors --tensor-comparison-op allclose --rtol 1e-3
""",
    )
    add_path(parser, "first", "a local path or a URL, of a file or of a folder that is a checkpoint")
    add_path(parser, "second", "the like")
    parser.add_argument(
        *("--tensor-comparison-op", "--tensor_comparison_op"),
        choices=OPERATIONS,
        help="compare elements exactly, or allow those of floating-point numbers to be apart by the tolerances",
    )
    parser.add_argument("--rtol", type=_tolerance, help=f"relative to the second, of allclose (default: {RTOL})")
    parser.add_argument("--atol", type=_tolerance, help=f"absolute, of allclose (default: {ATOL})")
    parser.set_defaults(refuse=parser.error)


def _tolerance(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        msg = f"{text!r} is no number of 0 or more"
        raise argparse.ArgumentTypeError(msg)
    return value


def _diff(options: argparse.Namespace) -> int:
    op = options.tensor_comparison_op
    given = {name: value for name in ("rtol", "atol") if (value := getattr(options, name)) is not None}
    if given and op == "equal":
        options.refuse("equal allows no tolerance: --rtol and --atol are of allclose")
    op = op or ("allclose" if given else "equal")
    callback = NoOpCallback() if options.quiet else None
    found = compare(one_fitting(options.first), one_fitting(options.second), op=op, **given, callback=callback)
    lines = [_line(each) for each in found.differences]
    if found.differences:
        lines.append(f"Found {_number(len(lines), 'difference')}.")
    emit(options, [dataclasses.asdict(each) for each in found.differences], lines)
    if not found.differences:
        held = f"{_number(found.tensors, 'tensor')} and {_number(found.values, 'other value')}"
        say(options, f"Checkpoints match: {held}.")
    return _DIFFERENT if found.differences else 0


def _line(each: Difference) -> str:
    name = each.name if each.name and each.name.isprintable() else repr(each.name)
    if each.elements is not None:
        count = f"{each.elements} of {_number(each.total or 0, 'element')}"
        verb = "differs" if each.elements == 1 else "differ"
        return f"{name}: {count} {verb}, by at most {_short(each.absolute)} (relative: {_short(each.relative)})"
    if each.first is None or each.second is None:
        return f"{name}: {each.what} ({each.first or each.second})"
    return f"{name}: {each.what} {each.first} and {each.second}"


def _short(value: float | None) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
