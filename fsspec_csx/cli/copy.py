"""``cszoo checkpoint copy`` and ``move``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from fsspec_csx.cli.output import emit, print_status
from fsspec_csx.cli.subcommand import Verbs, add_path, add_verb, progress_of, s3_options
from fsspec_csx.manage.copy import CheckpointTransfer, CopyResult
from fsspec_csx.manage.directory import strip_slashes
from fsspec_csx.manage.file_copy import RESUME_HINT
from fsspec_csx.manage.location import expand_pattern, needs_source_name

_PATHS = """
The result appears complete or not at all. An interrupted copy from or to S3 resumes when the command is run again.
Of several sources, those that are at the target already with the same bytes are skipped.
A folder that is one checkpoint (torch.distributed.checkpoint, Hugging Face, Cerebras) is copied as one.
"""
_COPY = f"""Copy checkpoints, byte for byte, between any two paths.{_PATHS}
copy model.mdl s3://bucket/run/
copy s3://bucket/run/model.mdl . --profile my-profile
copy 's3://bucket/run/*.mdl' checkpoints/
copy s3://here/model.mdl s3://there/model.mdl --source-profile mine --dest-profile theirs
"""
_MOVE = f"""Move checkpoints. The source is deleted after all bytes of the copy have been compared.{_PATHS}
move model.mdl s3://bucket/archive/
move s3://bucket/run/model.mdl s3://bucket/archive/model.mdl
"""


def add(verbs: Verbs) -> None:
    copy, move = partial(_transfer, moving=False), partial(_transfer, moving=True)
    _add_arguments(add_verb(verbs, "copy", copy, _COPY, help="copy checkpoints, byte for byte"))
    _add_arguments(add_verb(verbs, "move", move, _MOVE, help="move checkpoints"))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_path(parser, "source", "local paths, URLs, or quoted patterns", nargs="+", metavar="SRC")
    target = "a local path or a URL; a target that is a folder, or ends in a slash, takes the source's name"
    add_path(parser, "target", target, metavar="DST")
    parser.add_argument("-f", "--force", action="store_true", help="replace a checkpoint at the target")
    sides = parser.add_argument_group("options for one side (--profile and --endpoint-url apply to both)")
    for side, path in (("source", "SRC"), ("dest", "DST")):
        sides.add_argument(f"--{side}-profile", metavar="NAME", help=f"the AWS profile for {path}")
        sides.add_argument(f"--{side}-endpoint-url", metavar="URL", help=f"the S3 endpoint for {path}")


def _transfer(options: argparse.Namespace, *, moving: bool) -> None:
    folder = needs_source_name(options.target)
    if len(options.source) > 1 and not folder:
        options.parser.error(f"several sources need a folder as DST: end {options.target} with a slash")
    pairs = _sources(options, folder)
    done: list[CopyResult] = []
    options.done = {"moved" if moving else "copied": done}
    for source, source_options in pairs:
        own = s3_options(options.target, profile=options.dest_profile, endpoint_url=options.dest_endpoint_url)
        transfer = CheckpointTransfer(source, options.target, source_options, own)
        # An interrupted earlier call may have copied some of them.
        if len(pairs) > 1 and not options.force and (there := transfer.find(moving=moving)):
            why = "was moved before" if moving else "exists already, with the same bytes"
            print_status(options, f"Skipped {there.source}, as {there.target} {why}")
            options.done.setdefault("skipped", []).append(there)
            continue
        try:
            copied = transfer.run(moving=moving, overwrite=options.force, callback=progress_of(options))
        except KeyboardInterrupt:
            if not options.quiet:
                print(RESUME_HINT, file=sys.stderr)
            raise
        verb = "Moved" if moving else "Copied"
        print_status(options, f"{verb} checkpoint from {source} to {copied.target}")
        done.append(copied)
    emit(options, options.done)


def _sources(options: argparse.Namespace, folder: bool) -> list[tuple[str, Mapping[str, Any]]]:
    """Expand patterns, and pair each source with its storage options."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for source in options.source:
        own = s3_options(source, profile=options.source_profile, endpoint_url=options.source_endpoint_url)
        paths = expand_pattern(source, own)
        if paths is not None and not folder:
            msg = f"{source} is a pattern, and {options.target} is not a folder. End the target with a slash."
            raise ValueError(msg)
        found += [(path, own) for path in paths or [source]]
    names = Counter(strip_slashes(path).rpartition("/")[2] for path, _ in found)
    for name, count in names.items():
        if folder and count > 1:
            msg = f"Several sources have the name {name}, and would replace each other. Copy them one by one."
            raise ValueError(msg)
    return found
