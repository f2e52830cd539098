"""``cszoo checkpoint prune``."""

from __future__ import annotations

import argparse

from fsspec_csx.cli import confirmation
from fsspec_csx.cli.delete import failure_of, finish, told_of, would_be_deleted
from fsspec_csx.cli.format import emit_lines, in_bytes, say, table
from fsspec_csx.cli.list import as_data, counted, row, shown
from fsspec_csx.cli.subcommand import Verbs, add_path, roots_fitting
from fsspec_csx.manage.list import Found
from fsspec_csx.manage.prune import STEP, TIME, Pruned, carry_out, prune
from fsspec_csx.storage.paths import redacted


def add(verbs: Verbs) -> None:
    """The verb."""
    parser = verbs.add(
        "prune",
        _prune,
        help="delete all but the newest checkpoints under a root",
        description="Keep the newest checkpoints directly under a root and delete the others. The files of one step\n"
        "stay, or go, together. What is not whole does not count as one of those to keep, and stays if it is newer;\n"
        "and what has no step in its name stays.",
        examples="""
prune s3://bucket/run --keep 3 --dry-run
prune s3://bucket/run --keep 3 --keep-every 1000 --yes
""",
    )
    add_path(parser, "root", "a folder or a URL")
    parser.add_argument("--keep", type=_number, required=True, metavar="N", help="keep the newest N, at least 1")
    parser.add_argument("--keep-every", type=_number, metavar="K", help="keep those whose step is a multiple of K, too")
    parser.add_argument(
        "--by",
        choices=(STEP, TIME),
        default=STEP,
        help="what the newest are by: the step in a name, or when it was written",
    )
    confirmation.add_options(parser)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        msg = f"{text!r} is no whole number from 1 on"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _prune(options: argparse.Namespace) -> None:
    roots = roots_fitting(options.root)
    planned = _joined(
        [prune(root, options.keep, every=options.keep_every, by=options.by, dry_run=True) for root in roots]
    )
    size = _size(planned.doomed)
    done = planned
    if planned.doomed and not options.dry_run:
        lines = table(_rows(planned, "delete"), right=(1, 3))
        confirmation.confirm(options, lines, f"{counted(len(planned.doomed), 'checkpoint')}, {size}")
        done = carry_out(planned)
    emit_lines(options, table(_rows(done, "delete" if options.dry_run else "deleted"), right=(1, 3)))
    _explain(options, done)
    gone = [each for each in done.doomed if each.path not in done.failed]
    if not gone:
        say(options, "There is nothing to delete.")
    elif options.dry_run:
        say(options, would_be_deleted(len(gone), "checkpoint", size))
    else:
        say(options, f"Deleted {counted(len(gone), 'checkpoint')}, {_size(gone)}.")
    data = {
        "dry_run": options.dry_run,
        "kept": [as_data(each) for each in done.kept],
        "doomed": [as_data(each) for each in done.doomed],
        "damaged": told_of(done.damaged),
        "uncounted": {redacted(path): why for path, why in done.uncounted.items()},
        "failed": told_of(done.failed),
    }
    finish(options, data, failure_of(done.failed, len(done.doomed)))


def _joined(pruned: list[Pruned]) -> Pruned:
    """What becomes of the checkpoints of all roots."""
    whole = Pruned([], [])
    for each in pruned:
        whole.kept.extend(each.kept)
        whole.doomed.extend(each.doomed)
        whole.damaged.update(each.damaged)
        whole.uncounted.update(each.uncounted)
    return whole


def _rows(done: Pruned, deleted: str) -> list[tuple[str, ...]]:
    kept: list[tuple[str, ...]] = [
        ("damaged" if each.path in done.damaged else "keep", *row(each)) for each in done.kept
    ]
    return kept + [("failed" if each.path in done.failed else deleted, *row(each)) for each in done.doomed]


def _explain(options: argparse.Namespace, done: Pruned) -> None:
    """Say why some that are kept do not count among the newest."""
    for path, error in done.damaged.items():
        say(options, f"{shown(path)} is damaged, and does not count: {shown(str(error))}")
    for path, why in done.uncounted.items():
        say(options, f"{shown(path)} stays, and does not count: {why}.")


def _size(found: list[Found]) -> str:
    return in_bytes(sum(each.size for each in found))
