"""``cszoo checkpoint delete``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from fsspec_csx.cli import confirmation
from fsspec_csx.cli.errors import as_data
from fsspec_csx.cli.format import display_path, emit_data, emit_lines, in_bytes, pluralize, print_status
from fsspec_csx.cli.subcommand import Verbs, add_path, all_fitting
from fsspec_csx.errors import CSXError, DeleteError
from fsspec_csx.manage.delete import DeleteTarget, delete, targets
from fsspec_csx.storage.paths import redacted


def add(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add(
        "delete",
        _delete,
        help="delete checkpoints",
        description="Delete these checkpoints and nothing else. A folder with a manifest counts as one checkpoint.",
        examples="""
delete s3://bucket/run/checkpoint_100.mdl
delete --yes checkpoint_100.mdl checkpoint_200.mdl
delete --dry-run 's3://bucket/run/checkpoint_1*'
""",
    )
    add_path(parser, "paths", "local paths, URLs, or quoted patterns", nargs="+", metavar="path")
    confirmation.add_options(parser)


def errors_as_data(errors: Mapping[str, Exception]) -> dict[str, str]:
    """Errors by paths, for JSON."""
    return {redacted(path): redacted(str(error)) for path, error in errors.items()}


def combined_error(failed: Mapping[str, Exception], total: int, what: str = "checkpoints") -> Exception | None:
    """Combine the errors of several deletions into one; None if there are none.

    Args:
        failed: the errors by path.
        total: how many items were to be deleted.
        what: the plural noun for the items.
    """
    if not failed:
        return None
    first = next(iter(failed.values()))
    if total == 1:
        return first
    reason = first.reason if isinstance(first, CSXError) else str(first)
    names = ", ".join(map(redacted, failed))
    remedy = (
        first.remedy if isinstance(first, CSXError) else ""
    ) or "Check the permission to delete them, and try again."
    return DeleteError(f"{len(failed)} of {total} {what} are left ({names}): {reason}", remedy)


def finish(options: argparse.Namespace, data: Mapping[str, object], error: Exception | None) -> None:
    """Print the result if JSON was asked for, with the error if there is one; then raise the error."""
    emit_data(options, {**data, **(as_data(error) if error else {})})
    if error:
        raise error


def _delete(options: argparse.Namespace) -> None:
    to_delete = targets(all_fitting(options.paths))
    size = in_bytes(sum(each.size for each in to_delete))
    failed: dict[str, Exception] = {}
    if options.dry_run:
        emit_lines(options, map(_line, to_delete))
        print_status(options, would_be_deleted(len(to_delete), "checkpoint", size))
    else:
        what = (
            f"the checkpoint {display_path(to_delete[0].path)}"
            if len(to_delete) == 1
            else f"{len(to_delete)} checkpoints"
        )
        confirmation.confirm(options, [*map(_line, to_delete)] if len(to_delete) > 1 else [], f"{what}, {size}")
        failed = delete(to_delete)
        for each in to_delete:
            if each.path not in failed:
                print_status(options, f"Deleted checkpoint {display_path(each.path)}")
    checkpoints = [*map(_as_data, to_delete)]
    data = {"dry_run": options.dry_run, "checkpoints": checkpoints, "failed": errors_as_data(failed)}
    finish(options, data, combined_error(failed, len(to_delete)))


def would_be_deleted(count: int, noun: str, size: str) -> str:
    """The last line of a dry run."""
    return f"{pluralize(count, noun)}, {size}, would be deleted: pass --yes to delete."


def _line(target: DeleteTarget) -> str:
    files = f" ({len(target.files)} files)" if target.folder is not None else ""
    return f"{display_path(target.path)}  {in_bytes(target.size)}{files}"


def _as_data(target: DeleteTarget) -> dict[str, object]:
    sharded = target.folder is not None
    return {"path": redacted(target.path), "size": target.size, "files": len(target.files), "sharded": sharded}
