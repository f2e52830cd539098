"""``cszoo checkpoint gc``."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta, timezone

from fsspec_csx.cli import confirmation
from fsspec_csx.cli.delete import failure_of, finish, told_of, would_be_deleted
from fsspec_csx.cli.format import emit_lines, in_bytes, say, table
from fsspec_csx.cli.list import counted, shown
from fsspec_csx.cli.subcommand import Verbs, add_path, roots_fitting
from fsspec_csx.manage.gc import DAY, Leftover, clear, leftovers
from fsspec_csx.storage.paths import redacted

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add(verbs: Verbs) -> None:
    """The verb."""
    parser = verbs.add(
        "gc",
        _gc,
        help="delete what killed processes have left",
        description="Delete what killed processes have left under a root: unfinished uploads on S3, temporary files,\n"
        "and parts of sharded checkpoints that no manifest names.",
        examples="""
gc s3://bucket/run --dry-run
gc s3://bucket --older-than 7d --yes
""",
    )
    add_path(parser, "root", "a folder or a URL; s3://BUCKET is one too")
    parser.add_argument(
        "--older-than",
        type=_age,
        default=DAY,
        metavar="AGE",
        help="leave what was written to since: 30m, 12h, 7d (default: 1d); it may be under way",
    )
    confirmation.add_options(parser)


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    try:
        if found:
            return timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        pass
    msg = f"{text!r} is no age such as 30m, 12h or 7d"
    raise argparse.ArgumentTypeError(msg)


def _gc(options: argparse.Namespace) -> None:
    found = [each for root in roots_fitting(options.root) for each in leftovers(root, older_than=options.older_than)]
    lines = table(map(_row, found), right=(1, 2))
    size = in_bytes(sum(each.size or 0 for each in found))
    failed: dict[str, Exception] = {}
    if found and not options.dry_run:
        confirmation.confirm(options, lines, f"{counted(len(found), 'leftover')}, {size}")
        failed = clear(found)
    emit_lines(options, lines)
    if not found:
        say(options, "There is nothing to delete.")
    elif options.dry_run:
        say(options, would_be_deleted(len(found), "leftover", size))
    elif not failed:
        say(options, f"Deleted {counted(len(found), 'leftover')}, {size}.")
    data = {"dry_run": options.dry_run, "leftovers": [*map(_as_data, found)], "failed": told_of(failed)}
    finish(options, data, failure_of(failed, len(found), "leftovers"))


def _row(leftover: Leftover) -> tuple[str, ...]:
    size = "-" if leftover.size is None else in_bytes(leftover.size)
    return leftover.kind, _old(leftover), size, shown(leftover.path), leftover.upload_id or ""


def _old(leftover: Leftover) -> str:
    """Its age, in the largest unit of which it has two."""
    seconds = max(0.0, (datetime.now(timezone.utc) - leftover.modified).total_seconds())
    for unit, name in reversed(_UNITS.items()):
        if (count := seconds // timedelta(**{name: 1}).total_seconds()) >= 2:
            return f"{count:.0f}{unit}"
    return f"{seconds:.0f}s"


def _as_data(leftover: Leftover) -> dict[str, object]:
    return {
        "kind": leftover.kind,
        "path": redacted(leftover.path),
        "size": leftover.size,
        "modified": leftover.modified,
        "upload_id": leftover.upload_id,
    }
