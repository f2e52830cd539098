"""The command ``cszoo``: checkpoints from the shell, on any fsspec URL.

Exit status: 0 if what was asked is done, 2 for wrong usage, 3 for a failure, 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fsspec.callbacks import NoOpCallback

from fsspec_csx.checkpoint import copy
from fsspec_csx.settings import backends

_DONE, _FAILED, _INTERRUPTED = 0, 3, 130
_COPY_EXAMPLES = """examples:
  cszoo checkpoint copy model.mdl s3://bucket/run/
  cszoo checkpoint copy s3://bucket/run/model.mdl . --profile my-profile
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, those of the process by default; its exit status."""
    options = _parser().parse_args(arguments)
    if options.endpoint_url:
        os.environ["AWS_ENDPOINT_URL_S3"] = options.endpoint_url
    try:
        with backends.scoped_flags({"csx.storage.s3.profile": options.profile} if options.profile else {}):
            options.run(options)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (OSError, ValueError, ImportError) as error:
        if options.debug:
            raise
        print(f"cszoo: {error}", file=sys.stderr)
        return _FAILED
    return _DONE


def _copy(options: argparse.Namespace) -> None:
    target = options.target
    if os.path.isdir(target) and not target.endswith("/"):
        target += "/"  # as cp has it
    written = copy(options.source, target, overwrite=options.force, callback=NoOpCallback() if options.quiet else None)
    if not options.quiet:
        print(f"Copied checkpoint from {options.source} to {written}")


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-p", "--profile", help="the profile of the AWS files to use")
    common.add_argument("--endpoint-url", help="the S3 endpoint to use")
    common.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    parser = argparse.ArgumentParser(prog="cszoo", description="Checkpoints from the shell, on any fsspec URL.")
    nouns = parser.add_subparsers(title="nouns", required=True, metavar="NOUN")
    verbs = nouns.add_parser("checkpoint", help="manage checkpoints").add_subparsers(
        title="verbs", required=True, metavar="VERB"
    )
    copy_parser = verbs.add_parser(
        "copy",
        parents=[common],
        help="copy a checkpoint, byte for byte",
        description="Copy a checkpoint, byte for byte, between any two paths. It appears whole or not at all.",
        epilog=_COPY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    copy_parser.add_argument("source", help="a local path or a URL")
    copy_parser.add_argument("target", help="the like; one that ends in a slash takes the source's name")
    copy_parser.add_argument("-f", "--force", action="store_true", help="replace a checkpoint at the target")
    copy_parser.set_defaults(run=_copy)
    return parser
