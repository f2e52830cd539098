"""Redacts secrets in logs and errors: libraries log requests and responses, and errors show arguments."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Libraries whose loggers are filtered, and loggers that they may create later.
_LIBRARIES = ("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "fsspec_csx", "s3fs", "urllib3")
_LOGGERS = (
    *_LIBRARIES,
    *(f"aiobotocore.{name}" for name in ("credentials", "endpoint", "parsers", "regions", "tokens", "utils")),
    *(f"botocore.{name}" for name in ("auth", "credentials", "crt.auth", "endpoint", "hooks", "httpsession")),
    *(f"botocore.{name}" for name in ("parsers", "regions", "retryhandler", "tokens", "utils")),
    *("fsspec.http", "fsspec_csx.trainer", "urllib3.connectionpool"),
)
_NAMES = (
    "x-amz-security-token",
    "x-aws-ec2-metadata-token",
    r"x-amz-(?:copy-source-)?server-side-encryption-customer-key(?!-md5)",
    r"(?:CopySource)?SSECustomerKey(?!MD5)",
    "aws_?secret_?access_?key",
    "aws_?session_?token",
    "SecretAccessKey",
    "SessionToken",
    "accessToken",
    "refreshToken",
    "clientSecret",
    "Signature",
    "Token",
)
# A name, a separator as in headers, reprs of dicts, JSON and XML, and the value.
_SECRET = re.compile(rf"""((?:{"|".join(_NAMES)})["']?\s*[:=>,]\s*(?:b?["'])?)([^\s"'<>&,]{{8,}})""", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"""(authorization["']?\s*[:=,]\s*(?:b?["'])?)[^"'\s<>][^"'\n<>]*""", re.IGNORECASE)
# Signatures and tokens in URLs: names of Amazon, Google and Azure, and common names.
_SIGNED = re.compile(
    r"""([?&](?:X-(?:Amz|Goog)-(?:Credential|Security-Token|Signature)|AWSAccessKeyId|GoogleAccessId|Signature|sig|"""
    r"""(?:access_|auth_)?token|api_?key|password|secret)=)[^\s&"'<>]+""",
    re.IGNORECASE,
)
_PASSWORD = re.compile(r"(://[^/@:\s]*:)([^/\s]+)@")
_USER = re.compile(r"([a-z][a-z0-9+.-]*://)?.*@", re.IGNORECASE | re.DOTALL)
# Arguments of filesystems in reprs of dicts, calls and JSON. The values are quoted, as these words also occur in
# sentences.
_QUOTED = re.compile(
    r"""((?:secret|secret_key|passw(?:or)?d|passphrase|account_key|sas_token|connection_string)["']?\s*[:=]\s*b?(["']))"""
    r"""(?:(?!\2).)+""",
    re.IGNORECASE,
)
# Names of settings whose values are secrets.
_OF_SECRETS = re.compile(
    r"(.*_)?(secret|secret_key|secret_access_key|passw(or)?d|passphrase|api_key|account_key|connection_string)"
    r"|((session|access|refresh|sas|auth|api|hf)_)?token",
    re.IGNORECASE,
)
# Shorter values may be ordinary words.
_SHORTEST = 8
_registered: set[str] = set()


def register_secrets(settings: Any) -> None:
    """Redact the secrets in nested settings from all future logs and errors.

    Secrets are strings with secret names, and passwords in URLs.
    """
    redact_logs()
    for secret in _secrets(settings):
        if len(secret) >= _SHORTEST:
            _registered.update((secret, repr(secret)[1:-1]))


def _secrets(settings: Any) -> Iterator[str]:
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if isinstance(name, str) and isinstance(value, str) and _OF_SECRETS.fullmatch(name):
                yield value
            else:
                yield from _secrets(value)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _secrets(value)
    elif isinstance(settings, str):
        for found in _PASSWORD.finditer(settings):
            yield found[2]


def without_password(text: str) -> str:
    """Return a text without the passwords and signatures in its URLs."""
    return _SIGNED.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))


def without_user(url: str) -> str:
    """Return a proxy's URL without user name and password, also if it lacks a scheme or the password has a slash."""
    return _USER.sub(r"\1", url)


def redact(text: str) -> str:
    """Return a text without registered secrets, and without values that follow the name of a secret."""
    for secret in sorted(_registered, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _QUOTED.sub(r"\1***", _SECRET.sub(r"\1***", without_password(text)))
    return _AUTHORIZATION.sub(r"\1***", text)


def _redact_record(record: logging.LogRecord) -> bool:
    """Redact a record, as a filter. One that cannot be formatted is left to the handlers, which report it."""
    with contextlib.suppress(Exception):
        _redact_message(record)
    with contextlib.suppress(Exception):
        _redact_trace(record)
    return True


def _redact_message(record: logging.LogRecord) -> None:
    try:
        message = record.getMessage()
    except Exception:
        # The handlers print the message and the arguments separately.
        for name in ("msg", "args"):
            with contextlib.suppress(Exception):
                text = repr(getattr(record, name))
                if (shown := redact(text)) != text:
                    setattr(record, name, (shown,) if name == "args" else shown)
        return
    if (shown := redact(message)) != message:
        record.msg, record.args = shown, None


def _redact_trace(record: logging.LogRecord) -> None:
    if record.exc_info and not record.exc_text:
        trace = logging.Formatter().formatException(record.exc_info)
        if (shown := redact(trace)) != trace:
            record.exc_text = shown  # formatters use it instead of their own


def redact_logs() -> None:
    """Redact the logs of the libraries; call it again for loggers that were created later."""
    made = [each for each in list(logging.root.manager.loggerDict) if each.partition(".")[0] in _LIBRARIES]
    for name in {*_LOGGERS, *made}:
        logging.getLogger(name).addFilter(_redact_record)
