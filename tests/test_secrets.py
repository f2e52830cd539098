"""No secret in an error, a log at any level, a repr or a JSON form."""

from __future__ import annotations

import base64
import logging

import fsspec
import pytest
from secrets_shown import CUSTOMER_KEY, TOKEN

from fsspec_csx.redaction import redact_logs
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3


def test_debug_logs(server: LocalS3, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """Everything that is logged, at DEBUG, while files are written, read, refused and given up shows no secret."""
    caplog.set_level(logging.DEBUG)
    options = server.storage_options()
    for extra in ({}, {"secret": "wrong-secret-of-nobody"}, {"token": TOKEN}):
        fs = fsspec.filesystem("s3", **{**options, **extra})
        for mode in ("wb", "rb"):
            try:
                with fs.open(f"{bucket}/key", mode) as file:
                    file.write(b"data") if mode == "wb" else file.read()
            except PermissionError as error:
                caplog.handler.emit(logging.makeLogRecord({"msg": f"{error} {error!r} {error.__cause__!r}"}))
    assert "PutObject" in caplog.text
    for secret in (options["secret"], "wrong-secret-of-nobody", TOKEN):
        assert secret not in caplog.text


def test_customer_key_in_debug_logs(server: LocalS3, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """A customer's own encryption key is a secret too."""
    caplog.set_level(logging.DEBUG)
    sse = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": CUSTOMER_KEY}
    fs = fsspec.filesystem("s3", **server.storage_options(), s3_additional_kwargs=sse)
    try:
        fs.pipe_file(f"{bucket}/key", b"data")
    except (OSError, ValueError) as error:  # botocore refuses to send such a key over plain http
        caplog.handler.emit(logging.makeLogRecord({"msg": f"{error!r} {error.__cause__!r}"}))
    assert CUSTOMER_KEY not in caplog.text
    assert base64.b64encode(CUSTOMER_KEY.encode()).decode() not in caplog.text
    assert CUSTOMER_KEY not in fs.to_json()


@pytest.mark.parametrize(
    "message",
    [
        "x-amz-security-token:SECRETVALUE\nx-amz-date:20260101T000000Z",
        "headers={'X-Amz-Security-Token': b'SECRETVALUE', 'Host': b'x'}",
        "b'<Credentials><SecretAccessKey>SECRETVALUE</SecretAccessKey><Expiration>'",
        "<SessionToken>SECRETVALUE</SessionToken>",
        '{"roleCredentials":{"secretAccessKey":"SECRETVALUE","sessionToken":"SECRETVALUE"}}',
        "{'SSECustomerKey': 'SECRETVALUE', 'Bucket': 'b'}",
        "'x-amz-server-side-encryption-customer-key': 'SECRETVALUE'",
        '{"accessToken": "SECRETVALUE"}',
        '"Token" : "SECRETVALUE",',
    ],
)
def test_forms_in_which_botocore_logs_secrets(message: str, caplog: pytest.LogCaptureFixture) -> None:
    """Headers, reprs, XML and JSON are blotted, and what is no secret is left."""
    redact_logs()
    logger = logging.getLogger("botocore.parsers")
    with caplog.at_level(logging.DEBUG, "botocore.parsers"):
        logger.debug("Response body:\n%s and the rest", message)
    assert "SECRETVALUE" not in caplog.text
    assert "and the rest" in caplog.text


def test_reprs(fs: CSXFileSystem, server: LocalS3, bucket: str) -> None:
    """No repr of a filesystem, file or server shows the secret."""
    with fs.open(f"{bucket}/key", "wb") as file:
        shown = [repr(fs), str(fs), repr(file), repr(server), repr(server.identity), fs.to_json(), repr(fs._s3)]
        file.write(b"data")
    shown.append(repr(fsspec.open(f"s3://{bucket}/key", **server.storage_options())))
    for text in shown:
        assert server.identity.secret_key not in text
