"""Read each checkpoint completely, and compare it with every checksum it has. The exit status is 1 if any is damaged.

verify s3://bucket/run/checkpoint_100.mdl
verify *.mdl --json
verify 's3://bucket/run/checkpoint_*'
"""

from __future__ import annotations

import argparse
from typing import Any

from fsspec_csx.cli.errors import DIFFERENT, DONE, as_data
from fsspec_csx.cli.output import emit, in_bytes
from fsspec_csx.cli.subcommand import Verbs, add_path, add_verb, expand_paths, progress_of
from fsspec_csx.manage.verify import VerifyResult, verify


def add(verbs: Verbs) -> None:
    parser = add_verb(verbs, "verify", _verify, __doc__, help="read checkpoints completely and look for damage")
    add_path(parser, "paths", "local paths, URLs, or quoted patterns", nargs="+", metavar="path")


def _verify(options: argparse.Namespace) -> int:
    data: list[Any] = []
    lines: list[str] = []
    failure = None
    damaged = False
    for path in expand_paths(options.paths):
        try:
            found = verify(path, callback=progress_of(options))
        except Exception as error:  # still verify the other checkpoints
            failure = failure or error
            report = as_data(error)
            text = f"{report['cause']} {report['remedy']}".rstrip()
            data.append({"path": path, **report, "error": text})
            lines.append(f"{path}: not verified: {text}")
            continue
        damaged |= bool(found.damage)
        data.append(found)
        lines += _lines(found)
    emit(options, data, lines if len(options.paths) > 1 or not failure else [])
    if failure:
        raise failure
    return DIFFERENT if damaged else DONE


def _lines(found: VerifyResult) -> list[str]:
    counts = f"{found.records} records with checksums, {found.unchecked} without"
    matches = "; matches the server's checksum" if found.object_checked and not found.damage else ""
    state = "damaged" if found.damage else "whole"
    lines = [f"{found.path}: {state} ({in_bytes(found.size)}; {counts}{matches})"]
    lines += [f"  {each}" for each in found.damage]
    return [*lines, f"  {found.note}"] if found.note else lines
