"""Show the effective configuration: the credentials, the endpoint and other settings for S3, and the source of each.
Then check what works with them. In a bucket, one object is written, and always deleted.

doctor
doctor s3://bucket/run --profile my-profile
doctor s3://bucket/run --bench
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from fsspec_csx.cli.errors import DONE, FAILED
from fsspec_csx.cli.output import emit, emit_lines, in_bytes, table
from fsspec_csx.cli.subcommand import Verbs, add_verb, number
from fsspec_csx.doctor.check import Check
from fsspec_csx.doctor.run import checks, parse_url

if TYPE_CHECKING:
    from fsspec_csx.doctor.benchmark import Measurement

_MARKS = {True: "ok", False: "FAILED", None: "-"}
_WIDTH = len("conditional write")
# The divisors and numbers of digits for the speed and the CPU time of one direction, and of the other.
_SCALES = ((1e6, 0), (1, 2), (1e6, 0), (1, 2))


def add(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "doctor", _doctor, __doc__, help="show the effective configuration for S3, and check what works"
    )
    parser.add_argument("url", nargs="?", type=_url, help="a bucket, or a folder in one, to check reads and writes in")
    parser.add_argument("--no-speed", dest="speed", action="store_false", help="skip the speed test (with 32 MiB)")
    parser.add_argument(
        "--bench",
        action="store_true",
        help="measure latency and speed by the number of requests in flight, in place of the checks; writes, reads and "
        "deletes up to 260 MiB",
    )
    seconds = partial(number, least=1, most=3600)
    parser.add_argument("--seconds", type=seconds, default=30.0, help="how long --bench may take; 30 by default")


def _url(text: str) -> tuple[str, str]:
    try:
        return parse_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _doctor(options: argparse.Namespace) -> int:
    named = {"profile": options.profile, "endpoint_url": options.endpoint_url}
    named = {name: value for name, value in named.items() if value}
    if options.bench:
        _measure(options, named)
        return DONE
    found: list[Check] = []
    made = checks(options.url, storage_options=named, caller="the command line", speed=options.speed)
    with contextlib.closing(made):
        for check in made:
            found.append(check)
            emit_lines(options, _lines(check))
    fine = all(check.ok is not False for check in found)
    emit(options, {"ok": fine, "checks": found})
    return DONE if fine else FAILED


def _lines(check: Check) -> Iterator[str]:
    yield f"{_MARKS[check.ok]:6}  {check.name:{_WIDTH}}  {check.text}"
    if check.remedy:
        yield f"{'':6}  {'':{_WIDTH}}  {check.remedy}"


def _measure(options: argparse.Namespace, storage_options: dict[str, str]) -> None:
    if options.url is None:
        msg = "--bench needs a bucket, or a folder in one, to write to. Name it, as in s3://bucket/run."
        raise ValueError(msg)
    from fsspec_csx.doctor.benchmark import benchmark  # only here, as it imports s3fs

    def report(text: str) -> None:
        if not options.quiet:
            print(f"cszoo: measuring {text}", file=sys.stderr)

    with benchmark(options.url, storage_options=storage_options, seconds=options.seconds, report=report) as found:
        advice = {name: getattr(found, name) for name in ("default_reaches", "max_concurrency")}
        emit(options, {**asdict(found), **advice}, _table_lines(found))


def _table_lines(found: Measurement) -> Iterator[str]:
    median, most = (f"{1000 * each:.1f} ms" for each in (found.latency, found.latency_p90))
    yield f"first byte: {median} (median), {most} (90 % of the reads)"
    rows: list[tuple[str, ...]] = [("in flight", "MB/s up", "CPU s/GB", "MB/s down", "CPU s/GB")]
    for each in found.trials:
        cells = (each.upload, each.upload_cpu, each.download, each.download_cpu)
        shown = (
            "-" if cell is None else f"{cell / scale:.{digits}f}"
            for cell, (scale, digits) in zip(cells, _SCALES, strict=True)
        )
        rows.append((str(each.requests or "default"), *shown))
    yield from table(rows, right=range(1, 5))
    yield from _advice(found)
    moved = (
        f"{in_bytes(found.written)} up, {in_bytes(found.read)} down, in {found.seconds:.0f} s; all objects are deleted"
    )
    yield f"moved: {moved}"


def _advice(found: Measurement) -> Iterator[str]:
    where = "near: its first byte comes at once" if found.is_near else "far: many requests at a time hide its latency"
    yield f"the store is {where}"
    for direction, share in found.default_reaches.items():
        yield f"the default reaches {100 * share:.0f} % of the best fixed number of requests, {direction}"
    if (number := found.max_concurrency) is None:
        yield "max_concurrency: leave the default; the link is too slow to compare numbers of requests"
    elif found.is_default_enough:
        yield f"max_concurrency: leave the default; {number} would do, to spare a line that others use"
    else:
        yield f"max_concurrency: {number} was faster than the default; set it if a run with --seconds 90 finds the same"
    if found.endpoint.startswith("https:"):
        yield "https: TLS takes much of the processor time; plain http is only for a network that you trust"
