"""``cszoo checkpoint delete``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from fsspec_csx.cli.listing import shown
from fsspec_csx.cli.output import emit, in_bytes, say
from fsspec_csx.cli.verbs import Verbs, add_path
from fsspec_csx.errors import CSXError, DeleteError
from fsspec_csx.manage.deleting import Target, delete, targets
from fsspec_csx.paths import redacted


def add(verbs: Verbs) -> None:
    """The verb."""
    parser = verbs.add(
        "delete",
        _delete,
        help="delete checkpoints",
        description="Delete these checkpoints and nothing else. A folder with a manifest is deleted as one.",
        examples="""
delete s3://bucket/run/checkpoint_100.mdl
delete --yes checkpoint_100.mdl checkpoint_200.mdl
""",
    )
    add_path(parser, "paths", "a local path or a URL", nargs="+", metavar="path")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be deleted")


def told_of(errors: Mapping[str, Exception]) -> dict[str, str]:
    """Errors by paths, for JSON."""
    return {redacted(path): redacted(str(error)) for path, error in errors.items()}


def raise_failed(failed: Mapping[str, Exception], total: int, what: str = "checkpoints") -> None:
    """Raise an error that tells what is left of what was to go, if anything.

    Args:
        failed: what went wrong, by the paths of those that are left.
        total: how many were to go.
        what: they are.

    Raises:
        Exception: what went wrong, where only one was to go.
        DeleteError: else.
    """
    if not failed:
        return
    first = next(iter(failed.values()))
    if total == 1:
        raise first
    reason = first.reason if isinstance(first, CSXError) else str(first)
    names = ", ".join(map(redacted, failed))
    remedy = (first.remedy if isinstance(first, CSXError) else "") or "Check the rights to delete them, and try again."
    raise DeleteError(f"{len(failed)} of {total} {what} are left ({names}): {reason}", remedy)


def _delete(options: argparse.Namespace) -> None:
    doomed = targets(options.paths)
    failed = {}
    if not options.dry_run:
        _ask(options, doomed)
        failed = delete(doomed)
        for each in doomed:
            if each.path not in failed:
                say(options, f"Deleted checkpoint {shown(each.path)}")
    if options.dry_run or options.json:
        checkpoints = [*map(_as_data, doomed)]
        data = {"dry_run": options.dry_run, "checkpoints": checkpoints, "failed": told_of(failed)}
        emit(options, data, map(_line, doomed))
    raise_failed(failed, len(doomed))


def _ask(options: argparse.Namespace, doomed: list[Target]) -> None:
    if options.yes:
        return
    size = in_bytes(sum(each.size for each in doomed))
    what = f"the checkpoint {shown(doomed[0].path)}" if len(doomed) == 1 else f"{len(doomed)} checkpoints"
    if not sys.stdin.isatty():
        msg = f"Nobody can be asked whether to delete {what}. Give --yes to delete without a question."
        raise ValueError(msg)
    if len(doomed) > 1:
        print(*map(_line, doomed), sep="\n", file=sys.stderr)
    print(f"Delete {what}, {size}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        msg = "Nothing was deleted, as the answer was not yes. Answer y, or give --yes."
        raise ValueError(msg)


def _line(target: Target) -> str:
    files = f" ({len(target.files)} files)" if target.folder is not None else ""
    return f"{shown(target.path)}  {in_bytes(target.size)}{files}"


def _as_data(target: Target) -> dict[str, object]:
    sharded = target.folder is not None
    return {"path": redacted(target.path), "size": target.size, "files": len(target.files), "sharded": sharded}
