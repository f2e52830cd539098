"""No output shows a secret, whatever succeeds or fails."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import fsspec
import pytest
import torch
from listener import listening
from proxy import Fault, FaultProxy, error_answer, fault_proxy
from secrets_shown import CUSTOMER_KEY, TOKEN, Seen, all_logs

import fsspec_csx
from fsspec_csx import redaction
from fsspec_csx.cli import main
from fsspec_csx.errors import EndpointError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

PROXY_PASSWORD = "password-of-the-proxy"
BUCKET = "leaks"
STATE = {"w": torch.zeros(9 * 2**20, dtype=torch.uint8), "step": 1}


@pytest.fixture
def seen() -> Iterator[Seen]:
    """What is logged while a test runs."""
    with all_logs() as logs:
        yield logs


@pytest.fixture
def proxy(environment: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy with a password, by which all requests go."""
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fault_proxy(environment.endpoint_url) as running:
        monkeypatch.setenv("HTTP_PROXY", running.url.replace("//", f"//someone:{PROXY_PASSWORD}@"))
        yield running


def signatures(proxy: FaultProxy) -> set[str]:
    """Those of all requests that came, of signed URLs too, in each form in which they can be written."""
    report = " ".join(one.headers.get("authorization", "") + " ?" + one.query for one in proxy.requests)
    found = set(re.findall(r"Signature=([^\s,&]+)", report))
    return found | {unquote(one) for one in found} | {quote(one, safe="") for one in found}


def failing(seen: Seen, attempt: Callable[[], object]) -> None:
    """Do what may fail, and keep all that its error shows: the message, those below it, and the traceback."""
    try:
        seen.note(attempt())
    except Exception as error:
        seen.note(repr(error), "".join(traceback.format_exception(error)))


def command(seen: Seen, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
    """Run a verb, and keep what it prints, as text, as JSON, and with a traceback."""
    for more in (["--debug"], ["--json"]):
        failing(seen, lambda more=more: main(["checkpoint", *arguments, *more]))  # type: ignore[misc]
        seen.note(*capsys.readouterr())


def unharmed(seen: Seen, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """What people do all day."""
    path = f"s3://{BUCKET}/run/checkpoint_1.mdl"
    fsspec_csx.save(STATE, path)
    fsspec_csx.async_save(STATE, path).result()
    assert fsspec_csx.load(path)["step"] == 1
    seen.note(fsspec_csx.inspect(path))
    for arguments in (
        ("info", path),
        ("list", f"s3://{BUCKET}/run"),
        ("verify", path),
        ("copy", "--force", path, str(folder / "local.mdl")),
        ("copy", "--force", str(folder / "local.mdl"), f"s3://{BUCKET}/run/back.mdl"),
        ("copy", "--force", path, f"s3://{BUCKET}/other/copy.mdl"),
        ("diff", path, str(folder / "local.mdl")),
        ("doctor", f"s3://{BUCKET}/run", "--no-speed"),
        ("gc", f"s3://{BUCKET}"),
        ("delete", "--yes", f"s3://{BUCKET}/run/back.mdl"),
    ):
        command(seen, capsys, *arguments)


def harmed(seen: Seen, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]) -> None:
    """What goes wrong on the way, and is made good, or is not."""
    path = f"s3://{BUCKET}/run/checkpoint_1.mdl"
    elsewhere = {"Location": "http://localhost:1/"}
    faults = [
        Fault("GET", cut_down=100, times=2),
        Fault("PUT", answer=error_answer(503, "SlowDown")),
        Fault("POST", cut_down=0),
        Fault("PUT", cut_up=1000),
        *(Fault(times=20, answer=error_answer(status, code, elsewhere if status == 307 else None))
          for status, code in ((400, "ExpiredToken"), (403, "AccessDenied"), (307, "TemporaryRedirect"),
                               (403, "SignatureDoesNotMatch"), (403, "RequestTimeTooSkewed"))),
    ]  # fmt: skip
    for fault in faults:
        proxy.faults = [fault]
        failing(seen, lambda: fsspec_csx.save(STATE, path))
        proxy.faults = [fault]
        failing(seen, lambda: fsspec_csx.load(path))
    proxy.faults = [Fault(times=1000, answer=error_answer(403, "AccessDenied"))]
    command(seen, capsys, "copy", "--force", path, f"s3://{BUCKET}/other/copy.mdl")
    command(seen, capsys, "doctor", f"s3://{BUCKET}/run", "--no-speed")
    proxy.faults = []


@pytest.mark.usefixtures("proxy")
def test_nothing_shows_a_secret(
    server: LocalS3,
    proxy: FaultProxy,
    seen: Seen,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logs of all loggers at DEBUG, output, errors with all below them, and files show neither secret nor signature."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    fs = fsspec.filesystem("s3")
    fs.makedirs(BUCKET, exist_ok=True)
    unharmed(seen, capsys, tmp_path)
    harmed(seen, proxy, capsys)
    for extra in ({"token": TOKEN}, {"secret": "wrong-secret-of-nobody"}, {"s3_additional_kwargs": SSE}):
        other = fsspec.filesystem("s3", **{**server.storage_options(), **extra})
        for attempt in (other.ls, other.info, other.cat_file):
            failing(seen, lambda attempt=attempt: attempt(f"{BUCKET}/run/checkpoint_1.mdl"))  # type: ignore[misc]
        failing(seen, lambda other=other: other.pipe_file(f"{BUCKET}/x", b"x"))  # type: ignore[misc]
        seen.note(repr(other), other.to_json(), repr(other._s3), repr(other.transfer))
    signed = fs.sign(f"{BUCKET}/run/checkpoint_1.mdl")
    failing(seen, lambda: fsspec_csx.load(signed)["step"])
    failing(seen, lambda: fsspec_csx.save(STATE, f"{signed}/"))
    command(seen, capsys, "info", signed)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            seen.note(file.read_bytes().replace(bytes(1000), b"").decode("latin-1"))

    text = seen.text.getvalue()
    assert {"aiobotocore.endpoint", "botocore.auth", "s3fs", "urllib3.connectionpool"} <= seen.loggers | ALIASES
    assert "AccessDenied" in text
    assert "s3://leaks/run/checkpoint_1.mdl" in text
    basic = base64.b64encode(f"someone:{PROXY_PASSWORD}".encode()).decode()
    customer = base64.b64encode(CUSTOMER_KEY.encode()).decode()
    secrets = {server.identity.secret_key, "wrong-secret-of-nobody", TOKEN, PROXY_PASSWORD, basic, CUSTOMER_KEY}
    assert len(signatures(proxy)) > 50
    long = {one for one in signatures(proxy) if re.fullmatch("[0-9a-f]{64}", one)}
    assert long & set(re.findall(r"[0-9a-f]{64}", text)) == set()
    assert [one for one in {*secrets, customer, *signatures(proxy)} - long if one in text] == []


SSE = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": CUSTOMER_KEY}
# botocore's own loggers are those of aiobotocore where it has taken the code over.
ALIASES = {"aiobotocore.endpoint"}


def test_the_search_finds_what_is_there(server: LocalS3, proxy: FaultProxy, seen: Seen) -> None:
    """Without what blots them out signatures and tokens are in the logs: the test above could fail."""
    fs = fsspec.filesystem("s3", **{**server.storage_options(), "token": TOKEN}, skip_instance_cache=True)
    removed = []
    fs.connect()
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        if redaction._redact_record in logger.filters:
            logger.removeFilter(redaction._redact_record)
            removed.append(logger)
    try:
        with suppress(OSError):
            fs.ls(BUCKET)
    finally:
        for logger in removed:
            logger.addFilter(redaction._redact_record)
    assert len(removed) > 20
    assert TOKEN in seen.text.getvalue()
    assert signatures(proxy)
    assert all(one in seen.text.getvalue() for one in signatures(proxy) if re.fullmatch("[0-9a-f]{64}", one))


def test_tracebacks_in_logs(seen: Seen) -> None:
    """A traceback that a library logs is blotted as its message is, and one without secrets is left as it is."""
    redaction.redact_logs()
    logger = logging.getLogger("botocore.credentials")
    for text in ("refused: 'SecretAccessKey': 'the-secret-that-it-tells'", "nothing of interest"):
        try:
            raise ValueError(text)
        except ValueError:
            logger.debug("Refreshing failed", exc_info=True)
    assert "the-secret-that-it-tells" not in seen.text.getvalue()
    assert seen.text.getvalue().count("Traceback") == 2
    assert "nothing of interest" in seen.text.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "headers={'Authorization': b'AWS4-HMAC-SHA256 Credential=A/b, SignedHeaders=host, Signature=SECRETVALUE'}",
        "Proxy-Authorization: Basic SECRETVALUE",
        "authorization: Bearer SECRETVALUE",
        "Signature:\nSECRETVALUE",
        "GET http://h/k?X-Amz-Date=1&X-Amz-Signature=SECRETVALUE&x=1",
        "http://h/k?X-Amz-Security-Token=SECRETVALUE",
        "http://h/k?X-Amz-Credential=SECRETVALUE%2F20260101",
        "http://h/k?AWSAccessKeyId=AKIA&Signature=SECRETVALUE&Expires=1",
        "https://account.blob.core.windows.net/c/b?sv=2024&sig=SECRETVALUE",
        "{'http': 'http://someone:SECRET@VALUE@127.0.0.1:1'}",
        "'x-aws-ec2-metadata-token': 'SECRETVALUE'",
        "{'key': 'k', 'secret': 'SECRETVALUE', 'anon': False}",
        """S3(key='k', password="SECRETVALUE of two words")""",
        '{"account_key": "SECRETVALUE"}',
    ],
)
def test_forms_of_secrets(text: str) -> None:
    """Each form in which a header, a URL or a dict shows a secret is blotted, and what is around it stays."""
    shown = redaction.redact(f"before {text} and after")
    assert "SECRETVALUE" not in shown
    assert "VALUE@" not in shown
    assert shown.startswith("before ")
    assert "***" in shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:80/a@b",
        "s3://bucket/run/a:b@c",
        "the Signature does not match",
        "Tokens: 12",
        "key?sign=1",
        "the secret: described elsewhere",
        "without its secret, or password",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """Names and messages that only look alike are left as they are."""
    assert redaction.redact(text) == text


def test_refusal_of_a_proxy(seen: Seen) -> None:
    """The error of a proxy, whose traceback shows each of its causes, has no password of the proxy."""
    with listening(lambda heard: (407, {}, b"")) as proxy:
        named = {"https": proxy.url.replace("//", f"//someone:{PROXY_PASSWORD}@")}
        options = {"proxies": named, "retries": {"max_attempts": 0}}
        fs = fsspec.filesystem("s3", key="a", secret="b", endpoint_url="https://127.0.0.1:9", config_kwargs=options)
        with pytest.raises(EndpointError) as caught:
            fs.ls("")
        assert proxy.heard
    error: BaseException | None = caught.value
    assert "407" in "".join(traceback.format_exception(error))
    seen.note("".join(traceback.format_exception(error)))
    while error is not None:
        seen.note(repr(error))
        error = error.__cause__ or error.__context__
    assert PROXY_PASSWORD not in seen.text.getvalue()
    assert "Basic" not in seen.text.getvalue()


def test_forms_of_proxies() -> None:
    """The URL of a proxy loses its user and its password, whatever its form and the characters in the password."""
    for scheme in ("http://", "HTTPS://", "socks5h://", ""):
        for secret in ("someone:password", "password", ":password", "me:pass/word", "me@corp:p@ss?w#o:rd", ""):
            shown = redaction.without_user(f"{scheme}{secret}@127.0.0.1:1")
            assert shown == f"{scheme}127.0.0.1:1"


# -- what is kept, and carried to other processes -------------------------------------------------------------------


def test_json_and_pickles(server: LocalS3, bucket: str) -> None:
    """JSON holds no secret; a pickle, which goes to workers of the same user, has what the call named, and no more."""
    proxies = {"http": f"http://someone:{PROXY_PASSWORD}@127.0.0.1:1", "https": f"someone:{PROXY_PASSWORD}@127.0.0.1:2"}
    made = fsspec.filesystem(
        "s3",
        **server.storage_options(),
        config_kwargs={"proxies": proxies, "read_timeout": 7},
        s3_additional_kwargs={"SSECustomerKey": CUSTOMER_KEY, "ServerSideEncryption": "AES256"},
    )
    report = made.to_json()
    for secret in (server.identity.secret_key, server.identity.access_key, PROXY_PASSWORD, CUSTOMER_KEY):
        assert secret not in report
    kept = json.loads(report)["config_kwargs"]
    assert kept == {"proxies": {"http": "http://127.0.0.1:1", "https": "127.0.0.1:2"}, "read_timeout": 7}
    assert made.storage_options["config_kwargs"]["proxies"] == proxies
    assert pickle.loads(pickle.dumps(made)) is made


def test_pickles_of_files(environment: LocalS3, bucket: str) -> None:
    """A file whose credentials come from the environment is pickled without them."""
    fs = fsspec.filesystem("s3")
    fs.pipe_file(f"{bucket}/key", b"data")
    with fs.open(f"{bucket}/key", "rb") as file:
        file.read(1)
        for pickled in (pickle.dumps(file), pickle.dumps(fs), pickle.dumps(fsspec.open(f"s3://{bucket}/key"))):
            assert environment.identity.secret_key.encode() not in pickled
            assert environment.identity.access_key.encode() not in pickled


@pytest.mark.parametrize("where", ["call", "client", "environment", "profile"])
def test_endpoint_with_a_password(
    server: LocalS3, aws_files: Path, monkeypatch: pytest.MonkeyPatch, seen: Seen, where: str
) -> None:
    """S3 knows no passwords in URLs: such an endpoint is an error before anything is sent, without the password."""
    url = server.endpoint_url.replace("//", "//someone:password-of-someone@")
    options: dict[str, object] = {"key": "a-key", "secret": "a-secret"}
    if where == "call":
        options["endpoint_url"] = url
    elif where == "client":
        options["client_kwargs"] = {"endpoint_url": url}
    elif where == "environment":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    else:
        (aws_files / "config").write_text(f"[default]\nendpoint_url = {url}\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"user's name or a password\. Remove them") as caught:
            fsspec.filesystem("s3", **options).ls("")
        seen.note("".join(traceback.format_exception(caught.value)))
    assert "password-of-someone" not in seen.text.getvalue()


def test_records_of_uploads(fs: CSXFileSystem, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of an upload is for its owner alone, and holds nothing of the credentials."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("fsspec_csx.s3.multipart._is_resumable", lambda error: True)
    (tmp_path / "file").write_bytes(os.urandom(11 * 2**20))
    with fault_proxy(fs.endpoint_url) as proxy:
        proxy.faults = [Fault("PUT", query="partNumber=2", times=100, answer=error_answer(403, "AccessDenied"))]
        options = {**fs.storage_options, "endpoint_url": proxy.url}
        far = fsspec.filesystem("s3", **options, skip_instance_cache=True)
        with pytest.raises(PermissionError):
            far.put_file(str(tmp_path / "file"), f"{bucket}/key", chunksize=5 * 2**20, resumable=True)
        (record,) = (file for file in (tmp_path / "cache").rglob("*") if file.is_file())
        assert record.stat().st_mode & 0o777 == 0o600
        assert record.parent.stat().st_mode & 0o777 == 0o700
        for secret in (fs.secret, fs.key, *signatures(proxy)):
            assert secret not in record.read_text()


@pytest.mark.parametrize("where", ["environment", "config", "metadata"])
def test_proxy_with_an_invalid_password(
    server: LocalS3, monkeypatch: pytest.MonkeyPatch, closed_port: int, seen: Seen, where: str
) -> None:
    """A password that is not escaped is an error that names the remedy; nothing shows a part of it."""
    for name in ("NO_PROXY", "no_proxy", "http_proxy", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    options: dict[str, Any] = {"endpoint_url": server.endpoint_url} if where == "metadata" else server.storage_options()
    for start in ("http://user:", "user:", "//user:", "http:/user:", "user:pass://"):
        for mark in "/?#":
            url = f"{start}wordone{mark}wordtwo@127.0.0.1:{closed_port}"
            if where == "config":
                options["config_kwargs"] = {"proxies": {"http": url}}
            else:
                monkeypatch.setenv("HTTP_PROXY", url)
            fs = CSXFileSystem(**options, skip_instance_cache=True)
            with pytest.raises(EndpointError, match="Write %2F for /") as caught:
                fs.cat_file(f"{BUCKET}/x")
            seen.note(repr(caught.value), "".join(traceback.format_exception(caught.value)))
    shown = seen.text.getvalue()
    assert "wordone" not in shown
    assert "wordtwo" not in shown
