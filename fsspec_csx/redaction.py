"""No secret in a log: botocore and s3fs write requests and answers at DEBUG, with the credentials in them."""

from __future__ import annotations

import logging
import re

_LOGGERS = (
    "aiobotocore.endpoint",
    "aiobotocore.parsers",
    "aiobotocore.utils",
    "botocore.auth",
    "botocore.endpoint",
    "botocore.hooks",
    "botocore.httpsession",
    "botocore.parsers",
    "botocore.regions",
    "botocore.utils",
    "s3fs",
)
_NAMES = (
    "x-amz-security-token",
    r"x-amz-(?:copy-source-)?server-side-encryption-customer-key(?!-md5)",
    r"(?:CopySource)?SSECustomerKey(?!MD5)",
    "aws_?secret_?access_?key",
    "aws_?session_?token",
    "SecretAccessKey",
    "SessionToken",
    "accessToken",
    "refreshToken",
    "clientSecret",
    "Token",
)
# A name, what stands between in headers, reprs of dicts, JSON and XML alike, and the value.
_SECRET = re.compile(rf"""((?:{"|".join(_NAMES)})["']?\s*[:=>,]\s*(?:b?["'])?)([^\s"'<>&,]{{8,}})""", re.IGNORECASE)


class _Redact(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        redacted = _SECRET.sub(r"\1***", message)
        if redacted != message:
            record.msg, record.args = redacted, None
        return True


_filter = _Redact()


def redact_logs() -> None:
    """Blot secrets out of what botocore, aiobotocore and s3fs log; calling it again changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)
