"""Delete these checkpoints and nothing else. A folder with a manifest counts as one checkpoint.

delete s3://bucket/run/checkpoint_100.mdl
delete --yes checkpoint_100.mdl checkpoint_200.mdl
delete --dry-run 's3://bucket/run/checkpoint_1*'
"""

from __future__ import annotations

import argparse

from fsspec_csx.cli import deletion
from fsspec_csx.cli.output import emit_lines, in_bytes, pluralize, print_status
from fsspec_csx.cli.subcommand import Verbs, add_path, add_verb, expand_paths
from fsspec_csx.manage.delete import DeleteTarget, delete, targets


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "delete", _delete, __doc__, help="delete checkpoints")
    add_path(parser, "paths", "local paths, URLs, or quoted patterns", nargs="+", metavar="path")
    deletion.add_options(parser)


def _delete(options: argparse.Namespace) -> None:
    to_delete = targets(expand_paths(options.paths))
    size = sum(each.size for each in to_delete)
    failed: dict[str, Exception] = {}
    if options.dry_run:
        emit_lines(options, map(_line, to_delete))
        deletion.summarize(options, len(to_delete), "checkpoint", size)
    else:
        one = f"the checkpoint {to_delete[0].path}"
        what = one if len(to_delete) == 1 else f"{len(to_delete)} checkpoints"
        deletion.confirm(options, [*map(_line, to_delete)] if len(to_delete) > 1 else [], f"{what}, {in_bytes(size)}")
        failed = delete(to_delete)
        for each in to_delete:
            if each.path not in failed:
                print_status(options, f"Deleted checkpoint {each.path}")
    data = {"dry_run": options.dry_run, "checkpoints": [*map(_as_data, to_delete)]}
    deletion.finish(options, data, failed, len(to_delete))


def _line(target: DeleteTarget) -> str:
    left = f"; {pluralize(len(target.left), 'file')} in folders below may be of it, and stay" if target.left else ""
    files = f" ({len(target.files)} files{left})" if target.is_folder else ""
    return f"{target.path}  {in_bytes(target.size)}{files}"


def _as_data(target: DeleteTarget) -> dict[str, object]:
    data = {"path": target.path, "size": target.size, "files": len(target.files), "sharded": target.is_folder}
    return data | ({"left": target.left} if target.left else {})
