"""``cszoo checkpoint doctor``."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from fsspec_csx.cli.format import emit
from fsspec_csx.cli.subcommand import Verbs
from fsspec_csx.doctor.check import Check
from fsspec_csx.doctor.run import checks, parse_url

_FAILED = 3
_MARKS = {True: "ok", False: "FAILED", None: "-"}
_WIDTH = len("conditional write")


def add(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add(
        "doctor",
        _doctor,
        help="show the effective configuration for S3, and check what works",
        description="Show the effective configuration: the credentials, the endpoint and other settings for S3, and "
        "the source of each.\nThen check what works with them. In a bucket, one object is written, and always deleted.",
        examples="""
doctor
doctor s3://bucket/run --profile my-profile
""",
    )
    parser.add_argument("url", nargs="?", type=_url, help="a bucket, or a folder in one, to check reads and writes in")
    parser.add_argument("--no-speed", dest="speed", action="store_false", help="skip the speed test (with 32 MiB)")


def _url(text: str) -> str:
    try:
        parse_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _doctor(options: argparse.Namespace) -> int:
    named = {"profile": options.profile, "endpoint_url": options.endpoint_url}
    named = {name: value for name, value in named.items() if value}
    found: list[Check] = []

    def noted(one_by_one: Iterable[Check]) -> Iterator[Check]:
        for check in one_by_one:
            found.append(check)
            yield check

    made = checks(options.url, storage_options=named, caller="the command line", speed=options.speed)
    with contextlib.closing(made):
        if options.json:
            found = list(made)
        fine = all(check.ok is not False for check in found)
        emit(options, {"ok": fine, "checks": list(map(asdict, found))}, _lines(noted(made)))
    return 0 if all(check.ok is not False for check in found) else _FAILED


def _lines(made: Iterable[Check]) -> Iterator[str]:
    """A line for each check, and one for its remedy."""
    for check in made:
        yield f"{_MARKS[check.ok]:6}  {check.name:{_WIDTH}}  {check.text}"
        if check.remedy:
            yield f"{'':6}  {'':{_WIDTH}}  {check.remedy}"
