"""Keep the newest checkpoints directly under a root, and delete the others. The files of one step
are kept, or deleted, together. Incomplete checkpoints do not count as kept ones, and newer ones stay.
Best, last and final ones stay; if another has no step in its name, --by time is needed.

prune s3://bucket/run --keep 3 --dry-run
prune s3://bucket/run --keep 3 --keep-every 1000 --yes
"""

from __future__ import annotations

import argparse
from functools import partial

from fsspec_csx.cli import deletion
from fsspec_csx.cli.list import row
from fsspec_csx.cli.output import emit_lines, in_bytes, pluralize, print_status, table
from fsspec_csx.cli.subcommand import Verbs, add_path, add_verb, expand_roots, number
from fsspec_csx.manage.list import ListedCheckpoint
from fsspec_csx.manage.prune import STEP, TIME, PruneResult, delete_planned, prune


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "prune", _prune, __doc__, help="delete all but the newest checkpoints under a root")
    add_path(parser, "root", "a folder or a URL")
    count = partial(number, least=1, kind=int)
    parser.add_argument("--keep", type=count, required=True, metavar="N", help="keep the newest N, at least 1")
    parser.add_argument("--keep-every", type=count, metavar="K", help="also keep steps that are multiples of K")
    parser.add_argument(
        "--by", choices=(STEP, TIME), default=STEP, help="sort by the step in the name, or by the time of writing"
    )
    deletion.add_options(parser)


def _prune(options: argparse.Namespace) -> None:
    roots = expand_roots(options.root)
    planned = _merged(
        [prune(root, options.keep, every=options.keep_every, by=options.by, dry_run=True) for root in roots]
    )
    done = planned
    if planned.to_delete and not options.dry_run:
        lines = table(_rows(planned, "delete"), right=(1, 3))
        size = in_bytes(_size(planned.to_delete))
        deletion.confirm(options, lines, f"{pluralize(len(planned.to_delete), 'checkpoint')}, {size}")
        done = delete_planned(planned)
    emit_lines(options, table(_rows(done, "delete" if options.dry_run else "deleted"), right=(1, 3)))
    _explain(options, done)
    gone = [each for each in done.to_delete if each.path not in done.failed]
    deletion.summarize(options, len(gone), "checkpoint", _size(gone))
    deletion.finish(options, {"dry_run": options.dry_run, **vars(done)}, done.failed, len(done.to_delete))


def _merged(pruned: list[PruneResult]) -> PruneResult:
    merged = PruneResult([], [])
    for each in pruned:
        merged.kept.extend(each.kept)
        merged.to_delete.extend(each.to_delete)
        merged.damaged.update(each.damaged)
        merged.uncounted.update(each.uncounted)
    return merged


def _rows(done: PruneResult, deleted: str) -> list[tuple[str, ...]]:
    kept: list[tuple[str, ...]] = [
        ("damaged" if each.path in done.damaged else "keep", *row(each)) for each in done.kept
    ]
    return kept + [("failed" if each.path in done.failed else deleted, *row(each)) for each in done.to_delete]


def _explain(options: argparse.Namespace, done: PruneResult) -> None:
    """Print why some checkpoints do not count among the newest."""
    for path, error in done.damaged.items():
        print_status(options, f"{path} is damaged and does not count: {error}")
    for path, why in done.uncounted.items():
        print_status(options, f"{path} is kept and does not count: {why}.")


def _size(found: list[ListedCheckpoint]) -> int:
    return sum(each.size for each in found)
