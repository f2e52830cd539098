"""List the checkpoints under a root: step, time and size, the newest last.

list s3://bucket/run
list s3://bucket -r
list s3://bucket/run --latest
list 's3://bucket/run/checkpoint_1*'
"""

from __future__ import annotations

import argparse

from fsspec_csx.cli.output import emit, in_bytes, table
from fsspec_csx.cli.subcommand import Verbs, add_path, add_verb
from fsspec_csx.manage.list import ListedCheckpoint, latest_of, list_matching


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "list", _list, __doc__, help="list the checkpoints under a root")
    add_path(parser, "root", "a folder, a URL such as s3://BUCKET, or a quoted pattern")
    parser.add_argument("-r", "--recursive", action="store_true", help="also list folders below")
    parser.add_argument("--latest", action="store_true", help="print only the path of the newest complete one")


def row(found: ListedCheckpoint) -> tuple[str, str, str, str]:
    """Return the cells for a checkpoint: step, time, size and path."""
    files = f" ({found.files} files)" if found.sharded else ""
    step = "-" if found.step is None else str(found.step)
    time = found.modified.astimezone().strftime("%Y-%m-%d %H:%M:%S") if found.modified else "-"
    return step, time, in_bytes(found.size), found.path + files


def _list(options: argparse.Namespace) -> None:
    found = list_matching(options.root, recursive=options.recursive)
    if not options.latest:
        emit(options, found, table(map(row, found), right=(0, 2)))
        return
    newest = latest_of(found)
    if newest is None:
        what = "complete checkpoint" if found else "checkpoint"
        msg = f"There is no {what} under {options.root}. Check the path, or look deeper with --recursive."
        raise FileNotFoundError(msg)
    emit(options, newest, [newest.path])
