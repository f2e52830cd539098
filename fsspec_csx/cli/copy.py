"""``cszoo checkpoint copy`` and ``move``."""

from __future__ import annotations

import argparse
import os

from fsspec.callbacks import NoOpCallback

from fsspec_csx.checkpoint import copy
from fsspec_csx.cli.output import say
from fsspec_csx.cli.verbs import Verbs, add_path


def add(verbs: Verbs) -> None:
    """The verbs."""
    parser = verbs.add(
        "copy",
        _copy,
        help="copy a checkpoint, byte for byte",
        description="Copy a checkpoint, byte for byte, between any two paths. It appears whole or not at all.",
        examples="""
copy model.mdl s3://bucket/run/
copy s3://bucket/run/model.mdl . --profile my-profile
""",
    )
    add_path(parser, "source", "a local path or a URL")
    add_path(parser, "target", "the like; one that ends in a slash takes the source's name")
    parser.add_argument("-f", "--force", action="store_true", help="replace a checkpoint at the target")


def _copy(options: argparse.Namespace) -> None:
    target = options.target
    if os.path.isdir(target) and not target.endswith("/"):
        target += "/"  # as cp has it
    written = copy(options.source, target, overwrite=options.force, callback=NoOpCallback() if options.quiet else None)
    say(options, f"Copied checkpoint from {options.source} to {written}")
