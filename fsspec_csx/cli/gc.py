"""Delete leftovers of killed processes under a root: unfinished uploads on S3, temporary files,
and shards that no manifest names.

gc s3://bucket/run --dry-run
gc s3://bucket --older-than 7d --yes
"""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta, timezone

from fsspec_csx.cli import deletion
from fsspec_csx.cli.output import emit_lines, in_bytes, pluralize, table
from fsspec_csx.cli.subcommand import Verbs, add_path, add_verb, expand_roots
from fsspec_csx.manage.gc import DAY, Leftover, clear, leftovers

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "gc", _gc, __doc__, help="delete leftovers of killed processes")
    add_path(parser, "root", "a folder or a URL, such as s3://BUCKET")
    parser.add_argument(
        "--older-than",
        type=_age,
        default=DAY,
        metavar="AGE",
        help="keep what is younger and may be in use: 30m, 12h, 7d (default: 1d)",
    )
    deletion.add_options(parser)


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    try:
        if found:
            age = timedelta(**{_UNITS[found[2]]: int(found[1])})
            _ = datetime.now(timezone.utc) - age  # it must be a date
            return age
    except OverflowError:
        pass
    msg = f"{text!r} is not an age such as 30m, 12h or 7d"
    raise argparse.ArgumentTypeError(msg)


def _gc(options: argparse.Namespace) -> None:
    found = [each for root in expand_roots(options.root) for each in leftovers(root, older_than=options.older_than)]
    lines = table(map(_row, found), right=(1, 2))
    size = sum(each.size or 0 for each in found)
    failed: dict[str, Exception] = {}
    if found and not options.dry_run:
        deletion.confirm(options, lines, f"{pluralize(len(found), 'leftover')}, {in_bytes(size)}")
        failed = clear(found)
    emit_lines(options, lines)
    if not failed:
        deletion.summarize(options, len(found), "leftover", size)
    data = {"dry_run": options.dry_run, "leftovers": found}
    deletion.finish(options, data, failed, len(found), "leftover")


def _row(leftover: Leftover) -> tuple[str, ...]:
    size = "-" if leftover.size is None else in_bytes(leftover.size)
    return leftover.kind, _old(leftover), size, leftover.path, leftover.upload_id or ""


def _old(leftover: Leftover) -> str:
    seconds = max(0.0, (datetime.now(timezone.utc) - leftover.modified).total_seconds())
    for unit, name in reversed(_UNITS.items()):
        if (count := seconds // timedelta(**{name: 1}).total_seconds()) >= 2:
            return f"{count:.0f}{unit}"
    return f"{seconds:.0f}s"
