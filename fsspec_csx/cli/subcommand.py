"""Common code of the verbs of ``cszoo``: options and the layout of the help."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import shtab
from fsspec.callbacks import Callback, NoOpCallback

from fsspec_csx.manage.location import expand_pattern
from fsspec_csx.storage.paths import S3

Verbs: TypeAlias = "argparse._SubParsersAction[Any]"
"""The verbs of a noun, as argparse's ``add_subparsers`` returns them."""


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int | None], text: str | None, *, help: str
) -> argparse.ArgumentParser:
    """Add a verb with the common options.

    Args:
        verbs: the verbs of its noun.
        name: the verb.
        run: a function that returns the exit status, or None for 0.
        text: a description of the verb, a blank line, and examples; None under ``python -OO``.
        help: the description in a few words.
    """
    description, _, examples = (text or help).strip().partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=help, description=description, formatter_class=raw, allow_abbrev=False
    )
    command = parser.prog.rpartition(" ")[0]
    lines = "\n".join(f"  {command} {line}" for line in examples.splitlines())
    parser.epilog = lines and f"examples:\n{lines}"
    parser.set_defaults(run=run, parser=parser)
    common = parser.add_argument_group("options of every verb")
    common.add_argument("-p", "--profile", help="the AWS profile to use")
    common.add_argument("--endpoint-url", metavar="URL", help="the S3 endpoint to use")
    common.add_argument("-q", "--quiet", action="store_true", help="suppress progress and status messages")
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_path(parser: argparse.ArgumentParser, name: str, help: str, **options: Any) -> None:
    """Add an argument that is a local path or an fsspec URL; shells complete local paths."""
    parser.add_argument(name, help=help, **options).complete = shtab.FILE  # type: ignore[attr-defined]


def number(text: str, least: float, most: float = math.inf, *, kind: type[float] = float) -> float:
    """Parse the value of an option that is a number within limits; with the kind ``int``, a whole number."""
    with contextlib.suppress(ValueError, OverflowError):
        if math.isfinite(value := kind(text)) and least <= value <= most:
            return value
    limits = f"of {least:g} or more" if most == math.inf else f"between {least:g} and {most:g}"
    raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number {limits}")


def progress_of(options: argparse.Namespace) -> Callback | None:
    """Return a callback that shows nothing with ``--quiet``; otherwise None, for the default progress bar."""
    return NoOpCallback() if options.quiet else None


def expand_paths(paths: Iterable[str]) -> list[str]:
    """Expand patterns to the paths of checkpoints."""
    return [each for path in paths for each in expand_pattern(path) or [path]]


def expand_one(path: str) -> str:
    """Expand a pattern that matches a single checkpoint; a ValueError if several match."""
    found = expand_paths([path])
    if len(found) > 1:
        msg = f"{len(found)} checkpoints match {path}. Name one of them."
        raise ValueError(msg)
    return found[0]


def expand_roots(path: str) -> list[str]:
    """Expand a pattern to the paths of folders."""
    return expand_pattern(path, folders=True) or [path]


def s3_options(path: str, **options: str | None) -> dict[str, Any]:
    """Return the given options as storage options for a path on S3, also behind a cache; none for other paths."""
    given = {name: value for name, value in options.items() if value}
    first, *behind = (link.partition("://")[0] for link in path.split("::"))
    if first in S3:
        return given
    return {protocol: given for protocol in behind if protocol in S3}
