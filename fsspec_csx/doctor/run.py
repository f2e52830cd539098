"""examine: what is in force for S3, where it comes from, and whether it works."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import fsspec

from fsspec_csx.doctor.check import Check, failed, lacking, passed, skipped
from fsspec_csx.errors import CheckpointPathError, CredentialsError

_PACKAGES = ("fsspec-csx", "s3fs", "fsspec", "aiobotocore", "botocore", "torch")
_SCHEMES = ("s3", "s3a", "csx")
_EXAMPLE = "Give a bucket, or a folder in one, as in 's3://bucket/run'."


def examine(
    url: str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    caller: str = "the call",
    speed: bool = True,
) -> list[Check]:
    """Tell which settings for S3 are in force and where they come from, and try what works with them.

    What is tried takes an object of a name below the folder that nobody else has; it is removed in any case. No bucket
    is made.

    Args:
        url: a bucket, or a folder in one, as in ``s3://bucket/run``; None for what needs no bucket.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        caller: what names these, as the checks tell it.
        speed: whether to measure it, with an object of 32 MiB.

    Raises:
        CheckpointPathError: a ValueError, if the URL is not one of S3, or names no bucket.
    """
    return list(checks(url, storage_options=storage_options, caller=caller, speed=speed))


def checks(
    url: str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    caller: str = "the call",
    speed: bool = True,
) -> Generator[Check, None, None]:
    """As ``examine``, one by one. What was written is removed when the iterator ends, or is closed."""
    place = None if url is None else parse_url(url)
    return _checks(place, dict(storage_options or {}), caller, speed)


def parse_url(url: str) -> tuple[str, str]:
    """The bucket of a URL, and the prefix of the names in its folder: empty, or with a slash at its end.

    Raises:
        CheckpointPathError: if it is not one of S3, or names no bucket.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise CheckpointPathError(f"{url!r} is no S3 URL.", _EXAMPLE)
    from fsspec_csx.s3.filesystem import CSXFileSystem  # only here, as it imports s3fs

    bucket, prefix, _ = CSXFileSystem(anon=True).split_path(rest)
    if not bucket:
        raise CheckpointPathError(f"{url!r} lacks the bucket.", _EXAMPLE)
    return bucket, prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def _checks(
    place: tuple[str, str] | None, call: dict[str, Any], caller: str, speed: bool
) -> Generator[Check, None, None]:
    from fsspec_csx.doctor.bucket_checks import IN_BUCKET, BucketChecks
    from fsspec_csx.doctor.connectivity import check_credentials, check_endpoint  # only here, as they import s3fs
    from fsspec_csx.doctor.effective_config import EffectiveConfig

    yield _versions()
    yield _opener()
    yield from _commands()
    later = ("signed in", *(IN_BUCKET if place else ()))
    try:
        effective = EffectiveConfig(call, caller)
    except Exception as error:
        name = "credentials" if isinstance(error, CredentialsError) else "settings"
        yield failed(name, error, "Mend what it names, in the call, the environment or the AWS files.")
        yield from (skipped(each, "the settings cannot be used") for each in ("reachable", "clock", *later))
        return
    signed, fs = effective.sign_in()
    yield signed
    yield from effective.settings()
    answers = None
    for check in check_endpoint(effective):
        answers = check.ok if check.name == "reachable" else answers
        yield check
    if fs is None or not answers:
        why = "the endpoint cannot be reached" if fs else "there are no credentials"
        yield from (skipped(each, why) for each in later)
        return
    accepted = check_credentials(fs)
    yield accepted
    if place is None:
        return
    if accepted.ok is False:
        yield from (skipped(each, "the server does not let us in") for each in IN_BUCKET)
        return
    with closing(BucketChecks(fs, *place, speed=speed).run()) as trials:
        yield from trials


def _versions() -> Check:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} (unknown)")
    return passed("versions", ", ".join(found))


def _opener() -> Check:
    """Whether s3:// is ours: another package may have taken it."""
    from fsspec_csx.s3.filesystem import CSXFileSystem  # only here, as it imports s3fs

    kind = fsspec.get_filesystem_class("s3")
    name = f"{kind.__module__}.{kind.__qualname__}"
    if issubclass(kind, CSXFileSystem):
        return passed("s3://", f"opened by {name}")
    remedy = "Write csx:// in place of s3://, or find out who calls fsspec.register_implementation."
    return failed("s3://", f"It is opened by {name}, to which nothing of what follows applies.", remedy)


def _commands() -> Iterator[Check]:
    """Which ``cszoo`` the shell runs, if another package has one too."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    commands = [command for folder in folders if (command := shutil.which("cszoo", path=folder))]
    foreign = [command for command in commands if not _is_ours(command)]
    if foreign and foreign[0] == commands[0]:
        yield lacking("command", f"cszoo is {foreign[0]}, of another package", "Run fsspec-csx, the same command.")
    elif foreign:
        yield passed("command", f"cszoo is {commands[0]}; {foreign[0]}, of another package, is later on the PATH")


def _is_ours(command: str) -> bool:
    try:
        with open(command, "rb") as file:
            return b"fsspec_csx" in file.read(2**16)
    except OSError:
        return False
