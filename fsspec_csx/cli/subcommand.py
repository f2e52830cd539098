"""What the verbs of ``cszoo`` have in common: options, and the form of their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import shtab

from fsspec_csx.manage import patterns
from fsspec_csx.storage.paths import redacted

_S3 = ("s3://", "s3a://", "csx://")


class Verbs:
    """The verbs of a noun.

    Args:
        parsers: argparse's, of the noun.
        command: what is typed before a verb.
    """

    def __init__(self, parsers: Any, command: str = "cszoo checkpoint") -> None:
        self._parsers = parsers
        self._command = command

    def add(
        self, name: str, run: Callable[[argparse.Namespace], int | None], *, help: str, description: str, examples: str
    ) -> argparse.ArgumentParser:
        """A verb, with the options that all have.

        Args:
            name: what is typed.
            run: does it, and returns the exit status; None is 0.
            help: a line for the list of verbs.
            description: what it does, above its options.
            examples: lines of commands, below them.
        """
        lines = "\n".join(f"  {self._command} {line}" for line in examples.strip().splitlines())
        parser: argparse.ArgumentParser = self._parsers.add_parser(
            name,
            help=help,
            description=description,
            epilog=f"examples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(run=run)
        common = parser.add_argument_group("options of every verb")
        common.add_argument("-p", "--profile", help="the profile of the AWS files to use")
        common.add_argument("--endpoint-url", metavar="URL", help="the S3 endpoint to use")
        common.add_argument("-q", "--quiet", action="store_true", help="print no more than was asked for, and errors")
        common.add_argument("--json", action="store_true", help="print the result as JSON")
        common.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return parser


def add_path(parser: argparse.ArgumentParser, name: str, help: str, **options: Any) -> None:
    """An argument that is a local path or an fsspec URL; shells complete local ones."""
    parser.add_argument(name, help=help, **options).complete = shtab.FILE  # type: ignore[attr-defined]


def all_fitting(paths: Iterable[str]) -> list[str]:
    """The paths of checkpoints, patterns expanded."""
    return [each for path in paths for each in patterns.expanded(path) or [path]]


def one_fitting(path: str) -> str:
    """The path of a checkpoint, which may be given by a pattern that only it fits.

    Raises:
        ValueError: if several checkpoints fit.
    """
    found = all_fitting([path])
    if len(found) > 1:
        msg = f"{len(found)} checkpoints fit {redacted(path)}, and only one can be taken. Name that one."
        raise ValueError(msg)
    return found[0]


def roots_fitting(path: str) -> list[str]:
    """The paths of folders, a pattern expanded."""
    return patterns.folders(path) or [path]


def s3_options(path: str, **options: str | None) -> dict[str, str]:
    """The storage options of a path: those that are given, if it is one of S3; else none."""
    return {name: value for name, value in options.items() if value and path.startswith(_S3)}
