"""Runs the checks of the effective configuration for S3: the source of each setting, and whether it works."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any

import fsspec

from fsspec_csx.doctor.check import Check, failed, lacking, passed, skipped
from fsspec_csx.errors import CheckpointPathError, CredentialsError
from fsspec_csx.private_names import release
from fsspec_csx.storage.paths import FOLDER_EXAMPLE, S3, checkpoint_path

_PACKAGES = ("fsspec-csx", "s3fs", "fsspec", "aiobotocore", "botocore", "torch")


def parse_url(url: str) -> tuple[str, str]:
    """Return the bucket and the prefix (empty or with a final slash); a CheckpointPathError without a bucket."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in S3:
        raise CheckpointPathError(f"{url!r} is not an S3 URL.", FOLDER_EXAMPLE)
    checkpoint_path(url, folder=True)
    from fsspec_csx.s3.filesystem import CSXFileSystem  # only here, as it imports s3fs

    bucket, prefix, _ = CSXFileSystem(anon=True).split_path(rest)
    return bucket, prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def checks(
    place: tuple[str, str] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    caller: str = "the call",
    speed: bool = True,
) -> Generator[Check, None, None]:
    """Check the effective configuration for S3, and what works with it.

    The checks write one object with a unique name below the folder; it is deleted when the iterator ends or is closed.
    No bucket is created. For ``place`` see ``parse_url``; without it, checks that need a bucket are left out.
    ``caller`` names the source of the storage options.
    """
    from fsspec_csx.doctor.bucket_checks import IN_BUCKET, BucketChecks
    from fsspec_csx.doctor.connectivity import check_credentials, check_endpoint  # only here, as they import s3fs
    from fsspec_csx.doctor.effective_config import EffectiveConfig

    yield passed("versions", ", ".join(map(release, _PACKAGES)))
    yield _opener()
    yield from _commands()
    later = ("signed in", *(IN_BUCKET if place else ()))
    try:
        effective = EffectiveConfig(storage_options or {}, caller)
    except Exception as error:
        name = "credentials" if isinstance(error, CredentialsError) else "settings"
        yield failed(name, error, "Correct it in the call, the environment or the AWS files.")
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
        yield from (skipped(each, "the server refuses the credentials") for each in IN_BUCKET)
        return
    with closing(BucketChecks(fs, *place, speed=speed).run()) as checks:
        yield from checks


def _opener() -> Check:
    """Check whether this package opens s3://, as another may have registered it."""
    from fsspec_csx.s3.filesystem import CSXFileSystem  # only here, as it imports s3fs

    kind = fsspec.get_filesystem_class("s3")
    name = f"{kind.__module__}.{kind.__qualname__}"
    if issubclass(kind, CSXFileSystem):
        return passed("s3://", f"opened by {name}")
    remedy = "Write csx:// in place of s3://, or find out who calls fsspec.register_implementation."
    return failed("s3://", f"It is opened by {name}; the checks below do not apply to it.", remedy)


def _commands() -> Iterator[Check]:
    """Check which ``cszoo`` the shell runs, if another package also has one."""
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
