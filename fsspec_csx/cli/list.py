"""``cszoo checkpoint list``."""

from __future__ import annotations

import argparse
from datetime import datetime

from fsspec_csx.cli.format import emit, in_bytes, printable, table
from fsspec_csx.cli.subcommand import Verbs, add_path
from fsspec_csx.manage.list import Found, latest_of
from fsspec_csx.manage.patterns import listed
from fsspec_csx.storage.paths import redacted


def add(verbs: Verbs) -> None:
    """The verb."""
    parser = verbs.add(
        "list",
        _list,
        help="list the checkpoints under a root",
        description="List the checkpoints under a root: step, time and size, the newest last.",
        examples="""
list s3://bucket/run
list s3://bucket -r
list s3://bucket/run --latest
list 's3://bucket/run/checkpoint_1*'
""",
    )
    add_path(parser, "root", "a folder or a URL; s3://BUCKET is one too; a pattern too, in quotes")
    parser.add_argument("-r", "--recursive", action="store_true", help="look below its folders as well")
    parser.add_argument("--latest", action="store_true", help="print only the path of the newest one that is whole")


def shown(path: str) -> str:
    """A path on a line: without passwords, and with escapes for what is no printable character."""
    return printable(redacted(path))


def counted(number: int, noun: str) -> str:
    """So many of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def when(moment: datetime | None) -> str:
    """A point in time for people, in their own time zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else "-"


def row(found: Found) -> tuple[str, str, str, str]:
    """The cells that show a checkpoint: step, time, size and path."""
    files = f" ({found.files} files)" if found.sharded else ""
    step = "-" if found.step is None else str(found.step)
    return step, when(found.modified), in_bytes(found.size), shown(found.path) + files


def as_data(found: Found) -> dict[str, object]:
    """A checkpoint for JSON."""
    return {**vars(found), "path": redacted(found.path)}


def _list(options: argparse.Namespace) -> None:
    found = listed(options.root, recursive=options.recursive)
    if not options.latest:
        emit(options, [*map(as_data, found)], table(map(row, found), right=(0, 2)))
        return
    newest = latest_of(found)
    if newest is None:
        what = "whole checkpoint" if found else "checkpoint"
        msg = f"There is no {what} under {redacted(options.root)}. Check the path, or look deeper with --recursive."
        raise FileNotFoundError(msg)
    emit(options, as_data(newest), [newest.path])
