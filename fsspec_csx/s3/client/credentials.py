"""Finding credentials: six rules, in order, and an error that lists them if none finds credentials.

1. the call: ``key``/``secret``/``token``, ``profile`` (or ``profile_name``), ``session``, ``anon``;
2. ``backends.csx.storage.s3.profile``;
3. the fsspec configuration (``FSSPEC_S3_PROFILE``, ``fsspec.conf``);
4. the environment (``AWS_ACCESS_KEY_ID``, ..., ``AWS_PROFILE``);
5. ``[default]`` of the AWS config and credentials files;
6. the rest of botocore's chain: SSO, assumed roles, web identity, container, instance.

Rules 1 to 3 choose the arguments of the filesystem; rules 4 to 6 are those of botocore with these arguments.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from botocore import exceptions as boto
from botocore.session import Session

from fsspec_csx import errors
from fsspec_csx.redaction import redact, without_user
from fsspec_csx.s3.client.incomplete_credentials import CLIENT_SECRETS, check_session
from fsspec_csx.s3.transport.failures import RedirectedError

# The options of a filesystem that identify the user, by the rules above.
OPTIONS = frozenset({"anon", "key", "password", "profile", "profile_name", "secret", "session", "token", "username"})
SETTING = "backends.csx.storage.s3.profile"
# The error codes of STS for expired credentials.
_EXPIRED = {"ExpiredToken", "ExpiredTokenException"}
# botocore's names of the sources that are not profiles.
_OWNERS = {
    "assume-role-with-web-identity": "the environment's web identity",
    "container-role": "the container's role",
    "env": "the environment",
    "iam-role": "the instance's role",
}
_CUSTOMER_KEYS = ("SSECustomerKey", "CopySourceSSECustomerKey")
_BOTH = "Give both the access key and its secret, or neither."
_PROXY = ("_proxy", "_PROXY")
BUNDLE = "REQUESTS_CA_BUNDLE"
"""The environment variable for trusted certificates, which botocore reads if no AWS setting names any."""
_REMEDY = (
    f"Name a profile of the AWS files ({SETTING} = 'name', or storage_options={{'profile': 'name'}}), or set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment (anon=True reads public buckets)."
)


def resolve_options(call: Mapping[str, Any], configured: Mapping[str, Any], setting: str | None) -> dict[str, Any]:
    """Apply rules 1 to 3 to the options of a call; options of the fsspec configuration that must not apply become None.

    Args:
        configured: the options that the fsspec configuration adds.
        setting: the profile of ``backends.csx.storage.s3``, or None.
    """
    options = dict(call)
    if "profile_name" in options:
        options["profile"] = options.pop("profile_name") or options.get("profile")
    named = any(options.get(name) for name in OPTIONS) or any(
        (options.get("client_kwargs") or {}).get(name) for name in CLIENT_SECRETS
    )
    if not named and setting is not None:
        options["profile"] = setting
        named = True
    if named:
        masked = {name: None for name in OPTIONS & configured.keys() if name != "profile_name"}
        options = {**masked, **options}
    return options


def verify_of(session: Session, client: Mapping[str, Any]) -> bool | str:
    """Return whether certificates are verified, or the path of the trusted ones; by botocore's rules."""
    for named in (client.get("verify"), session.get_config_variable("ca_bundle"), os.environ.get(BUNDLE)):
        if named is not None:
            return bool(named) if isinstance(named, bool) else str(named)
    return True


def check_endpoint(url: str | None) -> None:
    """Raise ValueError if an endpoint's URL contains a user name or a password, which S3 does not use."""
    if url and "@" in urlsplit(url).netloc:
        msg = "The endpoint's URL holds a user's name or a password. Remove them, and pass key and secret instead."
        raise ValueError(msg)


def environment_token() -> str:
    """Return a digest of the AWS environment and files; it reveals no secrets."""
    watched = sorted(
        item for item in os.environ.items() if item[0].startswith(("AWS_", BUNDLE)) or item[0].endswith(_PROXY)
    )
    files = [(str(path), _stamp(path)) for path in _files()]
    return hashlib.sha256(repr((watched, files)).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _files() -> list[Path]:
    """Return the AWS config and credentials files that botocore reads in this environment."""
    config = os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")
    shared = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
    return [Path(config).expanduser(), Path(shared).expanduser()]


def _shown_files() -> list[str]:
    return [f"{path} ({'read' if path.exists() else 'not there'})" for path in _files()]


async def find(session: Any) -> tuple[str, str]:
    """Find a session's credentials now, rather than at the first request.

    Returns:
        A short description of their owner, and a digest of them, which reveals no secrets.

    Raises:
        CredentialsError: with what was tried and what to do. Later requests raise it too, if a renewal fails.
        EndpointError: if the source of the credentials cannot be reached.
    """
    with _mapped_errors(session):
        check_session(session, _profile(session))
        credentials = await session.get_credentials()
    if credentials is None:
        raise _none_found(session)
    _map_renewal_errors(credentials, session)
    found = await credentials.get_frozen_credentials()
    owner = _OWNERS.get(credentials.method) or f"profile {_profile(session)!r} ({credentials.method})"
    digest = hashlib.sha256(repr((found.access_key, found.secret_key, found.token)).encode()).hexdigest()
    return f"{owner} with access key {mask(found.access_key)}", digest


def _map_renewal_errors(credentials: Any, session: Any) -> None:
    """Make renewals of credentials, also those during a request, raise this package's errors."""
    renew = credentials.get_frozen_credentials

    async def get_frozen_credentials() -> Any:
        with _mapped_errors(session):
            return await renew()

    if not hasattr(renew, "mapped"):  # a session of the caller may be mapped already
        get_frozen_credentials.mapped = True  # type: ignore[attr-defined]
        credentials.get_frozen_credentials = get_frozen_credentials


@contextmanager
def _mapped_errors(session: Session) -> Iterator[None]:
    """Raise the errors of a search for credentials as this package's, and never as "not found"."""
    try:
        yield
    except errors.CSXError:
        raise
    except Exception as error:
        raise_search_error(error, session)


def raise_search_error(error: Exception, session: Session) -> NoReturn:
    """Raise this package's error for a failed search for credentials; chain the original unless it shows a secret."""
    raise _explained(error, session) from (error if redact(str(error)) == str(error) else None)


def _explained(error: Exception, session: Session) -> errors.CSXError:
    said = redact(" ".join(str(error).split()).rstrip("."))
    profile = _profile(session)
    if isinstance(error, boto.ProfileNotFound):
        return _unknown_profile(session, profile)
    if isinstance(error, boto.PartialCredentialsError):
        return errors.IncompleteCredentialsError(f"Half a pair of credentials: {said}.", _BOTH)
    if isinstance(error, boto.ConfigParseError):
        return errors.CredentialsError(f"An AWS file cannot be read: {said}.", "Correct the file named, or remove it.")
    if isinstance(error, (boto.SSOError, boto.TokenRetrievalError)):
        reason = f"The SSO session of profile {profile!r} is missing or has expired."
        return errors.ExpiredCredentialsError(reason, f"Run: aws sso login --profile {profile}")
    if isinstance(error, RuntimeError) and "expired" in said:
        reason = f"Profile {profile!r} gives credentials that have expired already."
        remedy = "Renew what it gets them from (the program, role or file that it names), and check the clock."
        return errors.ExpiredCredentialsError(reason, remedy)
    if isinstance(error, RedirectedError):
        reason = f"The metadata service that profile {profile!r} gets its credentials from redirects to"
        remedy = "Check the addresses that the AWS_* variables and the profile name, and what answers there."
        return errors.CredentialsError(f"{reason} {error.location}, which is not followed.", remedy)
    if isinstance(error, (boto.ConnectionError, boto.HTTPClientError)):
        reason = f"The credential source of profile {profile!r} cannot be reached: {said}."
        return errors.EndpointError(
            reason, "Check the network, and the addresses that the profile and the environment name."
        )
    if isinstance(error, boto.ClientError) and error.response.get("Error", {}).get("Code") in _EXPIRED:
        reason = f"The credential source of profile {profile!r} has expired: {said}."
        return errors.ExpiredCredentialsError(reason, "Renew the credentials, or the token, that the profile names.")
    if owner := _OWNERS.get(str(getattr(error, "kwargs", {}).get("provider"))):
        reason = f"{owner[:1].upper()}{owner[1:]} gives no credentials: {said}."
        return errors.CredentialsError(reason, "Check who gives them, and the AWS_* variables of the environment.")
    reason = f"Profile {profile!r} gives no credentials: {said or type(error).__name__}."
    return errors.CredentialsError(reason, "Correct the profile in the AWS files, or name another.")


def _profile(session: Session) -> str:
    return str(session.get_config_variable("profile") or "default")


def _none_found(session: Session) -> errors.NoCredentialsError:
    files = " and ".join(_shown_files())
    named = session.instance_variables().get("profile")
    if named is not None:
        reason = f"Profile {named!r} gives no credentials: {files} have none for it, nor does any role or instance."
        return errors.NoCredentialsError(reason, _REMEDY)
    by_environment = session.get_config_variable("profile") or "not set"
    tried = (
        "the call (key and secret, profile, session, anon): none",
        f"{SETTING}: not set",
        "the fsspec configuration (such as FSSPEC_S3_PROFILE): none",
        f"the environment: AWS_ACCESS_KEY_ID not set, AWS_PROFILE {by_environment}",
        f"[default] of {files}: no credentials",
        "SSO, assumed roles, web identity, container and instance: none",
    )
    listed = "; ".join(f"{number}. {line}" for number, line in enumerate(tried, 1))
    return errors.NoCredentialsError(f"No S3 credentials were found. Tried, in order: {listed}.", _REMEDY)


def _unknown_profile(session: Session, profile: str) -> errors.UnknownProfileError:
    known = ", ".join(sorted(session.available_profiles)) or "none"
    reason = f"There is no profile {profile!r} in {', '.join(_shown_files())}; the profiles there: {known}."
    return errors.UnknownProfileError(reason, "Name one of them, or add it with: aws configure --profile NAME")


def mask(key: str) -> str:
    """Return the last four characters of an access key."""
    return f"...{key[-4:]}" if len(key) >= 8 else "..."


def without_secrets(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a filesystem without secrets; a filesystem with them resolves credentials by the rules."""
    public = {name: value for name, value in options.items() if name not in OPTIONS - {"anon", "profile"}}
    for name, secrets in (("client_kwargs", CLIENT_SECRETS), ("s3_additional_kwargs", _CUSTOMER_KEYS)):
        if isinstance(public.get(name), Mapping):
            public[name] = {key: value for key, value in public[name].items() if key not in secrets}
    config = public.get("config_kwargs")
    if isinstance(config, Mapping) and isinstance(config.get("proxies"), Mapping):
        proxies = {scheme: without_user(proxy) for scheme, proxy in config["proxies"].items()}
        public["config_kwargs"] = {**config, "proxies": proxies}
    return public
