"""``cszoo checkpoint delete``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from fsspec_csx.cli import confirmation
from fsspec_csx.cli.errors import as_data
from fsspec_csx.cli.format import emit_data, emit_lines, in_bytes, say
from fsspec_csx.cli.list import counted, shown
from fsspec_csx.cli.subcommand import Verbs, add_path, all_fitting
from fsspec_csx.errors import CSXError, DeleteError
from fsspec_csx.manage.delete import Target, delete, targets
from fsspec_csx.storage.paths import redacted


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
delete --dry-run 's3://bucket/run/checkpoint_1*'
""",
    )
    add_path(parser, "paths", "local paths or URLs; patterns too, in quotes", nargs="+", metavar="path")
    confirmation.add_options(parser)


def told_of(errors: Mapping[str, Exception]) -> dict[str, str]:
    """Errors by paths, for JSON."""
    return {redacted(path): redacted(str(error)) for path, error in errors.items()}


def failure_of(failed: Mapping[str, Exception], total: int, what: str = "checkpoints") -> Exception | None:
    """An error that says what is left of what was to be deleted; None if nothing is.

    Args:
        failed: what went wrong, by the paths of those that are left.
        total: how many were to go.
        what: they are.
    """
    if not failed:
        return None
    first = next(iter(failed.values()))
    if total == 1:
        return first
    reason = first.reason if isinstance(first, CSXError) else str(first)
    names = ", ".join(map(redacted, failed))
    remedy = (first.remedy if isinstance(first, CSXError) else "") or "Check the rights to delete them, and try again."
    return DeleteError(f"{len(failed)} of {total} {what} are left ({names}): {reason}", remedy)


def finish(options: argparse.Namespace, data: Mapping[str, object], error: Exception | None) -> None:
    """Print what was deleted as JSON, if that is asked for, with the error, if there is one; and raise the error."""
    emit_data(options, {**data, **(as_data(error) if error else {})})
    if error:
        raise error


def _delete(options: argparse.Namespace) -> None:
    doomed = targets(all_fitting(options.paths))
    size = in_bytes(sum(each.size for each in doomed))
    failed: dict[str, Exception] = {}
    if options.dry_run:
        emit_lines(options, map(_line, doomed))
        say(options, would_be_deleted(len(doomed), "checkpoint", size))
    else:
        what = f"the checkpoint {shown(doomed[0].path)}" if len(doomed) == 1 else f"{len(doomed)} checkpoints"
        confirmation.confirm(options, [*map(_line, doomed)] if len(doomed) > 1 else [], f"{what}, {size}")
        failed = delete(doomed)
        for each in doomed:
            if each.path not in failed:
                say(options, f"Deleted checkpoint {shown(each.path)}")
    checkpoints = [*map(_as_data, doomed)]
    data = {"dry_run": options.dry_run, "checkpoints": checkpoints, "failed": told_of(failed)}
    finish(options, data, failure_of(failed, len(doomed)))


def would_be_deleted(count: int, noun: str, size: str) -> str:
    """What a dry run ends with."""
    return f"{counted(count, noun)}, {size}, would be deleted: give --yes to do it."


def _line(target: Target) -> str:
    files = f" ({len(target.files)} files)" if target.folder is not None else ""
    return f"{shown(target.path)}  {in_bytes(target.size)}{files}"


def _as_data(target: Target) -> dict[str, object]:
    sharded = target.folder is not None
    return {"path": redacted(target.path), "size": target.size, "files": len(target.files), "sharded": sharded}
