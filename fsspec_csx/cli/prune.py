"""``cszoo checkpoint prune``."""

from __future__ import annotations

import argparse

from fsspec_csx.cli.delete import raise_failed, told_of
from fsspec_csx.cli.listing import as_data, counted, row, shown
from fsspec_csx.cli.output import emit, in_bytes, say, table
from fsspec_csx.cli.verbs import Verbs, add_path
from fsspec_csx.manage.retention import prune


def add(verbs: Verbs) -> None:
    """The verb."""
    parser = verbs.add(
        "prune",
        _prune,
        help="delete all but the newest checkpoints under a root",
        description="Keep the newest checkpoints directly under a root and delete the others; without --yes only show\n"
        "which. Those whose names tell no step stay, and so does a damaged one, which does not count.",
        examples="""
prune s3://bucket/run --keep 3
prune s3://bucket/run --keep 3 --keep-every 1000 --yes
""",
    )
    add_path(parser, "root", "a folder or a URL")
    parser.add_argument("--keep", type=_number, required=True, metavar="N", help="keep the newest N, at least 1")
    parser.add_argument("--keep-every", type=_number, metavar="K", help="keep those whose step is a multiple of K, too")
    parser.add_argument("-y", "--yes", action="store_true", help="delete, and do not only show what would be deleted")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        msg = f"{text!r} is no whole number from 1 on"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _prune(options: argparse.Namespace) -> None:
    done = prune(options.root, options.keep, every=options.keep_every, dry_run=not options.yes)
    data = {
        "dry_run": not options.yes,
        "kept": [as_data(each) for each in done.kept],
        "doomed": [as_data(each) for each in done.doomed],
        "damaged": told_of(done.damaged),
        "failed": told_of(done.failed),
    }
    rows = [("damaged" if each.path in done.damaged else "keep", *row(each)) for each in done.kept]
    deleted = "deleted" if options.yes else "delete"
    rows += [("failed" if each.path in done.failed else deleted, *row(each)) for each in done.doomed]
    emit(options, data, table(rows, right=(1, 3)))
    for path, error in done.damaged.items():
        say(options, f"{shown(path)} is damaged, and does not count: {shown(str(error))}")
    gone = [each for each in done.doomed if each.path not in done.failed]
    size = in_bytes(sum(each.size for each in gone))
    if not options.yes and gone:
        say(options, f"{counted(len(gone), 'checkpoint')}, {size}, would be deleted: give --yes to do it.")
    elif gone:
        say(options, f"Deleted {counted(len(gone), 'checkpoint')}, {size}.")
    else:
        say(options, "There is nothing to delete.")
    raise_failed(done.failed, len(done.doomed))
