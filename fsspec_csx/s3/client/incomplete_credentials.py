"""Checks for half a pair of credentials; the error names the missing half."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from botocore.configloader import build_profile_map, raw_config_parse
from botocore.exceptions import ConfigNotFound
from botocore.session import Session

from fsspec_csx.errors import IncompleteCredentialsError

CLIENT_SECRETS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
"""The names of an access key, its secret and its token in the AWS files, and as arguments of a client."""

_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def check_pair(given: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raise IncompleteCredentialsError if only some of key, secret and token are given; ``names`` are theirs."""
    key, secret, token = (bool(given.get(name)) for name in names)
    if key == secret and (key or not token):
        return
    have = names[0] if key else names[1] if secret else names[2]
    lack = names[1] if key else names[0] if secret else f"{names[0]} and {names[1].removeprefix('the ')}"
    reason = f"Half a pair of credentials: {where} gives {have} without {lack}."
    raise IncompleteCredentialsError(reason, f"Give {lack} too, or remove {have}.")


def check_options(key: str | None, secret: str | None, token: str | None, client: Mapping[str, Any]) -> None:
    """Raise IncompleteCredentialsError if the options of a filesystem give half a pair."""
    whole = [given or client.get(name) for given, name in zip((key, secret, token), CLIENT_SECRETS, strict=True)]
    names = ("the key", "the secret", "the token")
    check_pair(dict(zip(names, whole, strict=True)), names, "the call or the fsspec configuration")


def check_session(session: Session, profile: str) -> None:
    """Raise IncompleteCredentialsError if the source of a session's credentials gives half a pair.

    botocore would ignore a secret without its key, and use the next source.
    """
    if session.instance_variables().get("profile") is None:
        check_pair(os.environ, _VARIABLES, "the environment")
        if os.environ.get(_VARIABLES[0]):
            return
    # botocore takes the keys from the first of the two files that has them.
    for path, section in _sections(session, profile):
        check_pair(section, CLIENT_SECRETS, f"profile {profile!r} in {path}")
        if section.get(CLIENT_SECRETS[0]):
            break
    profiles = session.full_config["profiles"]
    seen = {profile}
    while (profile := profiles.get(profile, {}).get("source_profile")) and profile not in seen:
        seen.add(profile)
        # For source profiles, botocore merges the two files.
        paths = " and ".join(path for path, section in _sections(session, profile) if section)
        check_pair(profiles.get(profile, {}), CLIENT_SECRETS, f"profile {profile!r} in {paths}")


def _sections(session: Session, profile: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the sections of a profile in the AWS credentials and config files with their paths, in that order."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for variable in ("credentials_file", "config_file"):
        path = session.get_config_variable(variable)
        try:
            parsed = raw_config_parse(path)
        except ConfigNotFound:
            continue
        sections = parsed if variable == "credentials_file" else build_profile_map(parsed)["profiles"]
        found.append((os.path.expanduser(path), sections.get(profile, {})))
    return found
