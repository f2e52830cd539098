"""Credentials that roles, containers and instances give: renewed in time, or reported soon and clearly why not."""

from __future__ import annotations

import datetime
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from listener import Answer, Listener, listening

from fsspec_csx.errors import CredentialsError, EndpointError, ExpiredCredentialsError, NoCredentialsError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

ROLE = "arn:aws:iam::123456789012:role/trainer"
STS = "https://sts.amazonaws.com/doc/2011-06-15/"


def ends(seconds: float) -> str:
    """So many seconds from now, as AWS writes it."""
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def assumed(server: LocalS3, seconds: float, action: str = "AssumeRole") -> Answer:
    """STS's answer with keys that the server knows."""
    known = server.identity
    keys = f"<AccessKeyId>{known.access_key}</AccessKeyId><SecretAccessKey>{known.secret_key}</SecretAccessKey>"
    given = f"<Credentials>{keys}<SessionToken></SessionToken><Expiration>{ends(seconds)}</Expiration></Credentials>"
    return 200, {"Content-Type": "text/xml"}, (
        f"<{action}Response xmlns='{STS}'><{action}Result>{given}</{action}Result></{action}Response>".encode()
    )  # fmt: skip


def refused(code: str, message: str) -> Answer:
    """STS's refusal."""
    report = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
    return 403, {"Content-Type": "text/xml"}, f"<ErrorResponse xmlns='{STS}'>{report}</ErrorResponse>".encode()


def given(server: LocalS3, seconds: float) -> Answer:
    """A container's answer with keys that the server knows."""
    keys = {"AccessKeyId": server.identity.access_key, "SecretAccessKey": server.identity.secret_key, "Token": ""}
    return 200, {"Content-Type": "application/json"}, json.dumps({**keys, "Expiration": ends(seconds)}).encode()


@pytest.fixture
def giver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """A server that gives credentials; without the waits between attempts."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    with listening() as running:
        yield running


@pytest.fixture
def role(server: LocalS3, giver: Listener, aws_files: Path, monkeypatch: pytest.MonkeyPatch) -> Listener:
    """A default profile that assumes a role, of the giver."""
    keys = "aws_access_key_id = key-of-base\naws_secret_access_key = secret-of-base\n"
    assumes = f"[default]\nrole_arn = {ROLE}\nsource_profile = base\nregion = us-east-1\n"
    (aws_files / "config").write_text(f"[profile base]\n{keys}{assumes}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", giver.url)
    return giver


def opened() -> CSXFileSystem:
    """A filesystem with the credentials that the rules give."""
    made = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    assert isinstance(made, CSXFileSystem)
    return made


@pytest.mark.parametrize(("seconds", "asked"), [(3600, 1), (60, 3)])
def test_role_is_assumed_again_in_time(
    server: LocalS3, role: Listener, bucket: str, seconds: float, asked: int
) -> None:
    """Keys that are valid for long are requested once; others are requested again before they expire."""
    role.answer = lambda heard: assumed(server, seconds)
    fs = opened()
    fs.pipe_file(f"{bucket}/key", b"data")
    assert fs.cat_file(f"{bucket}/key") == b"data"
    assert (len(role.heard) == 1) if asked == 1 else (len(role.heard) >= asked)
    assert all(b"Action=AssumeRole" in one.body for one in role.heard)


def test_role_that_can_be_assumed_no_more(server: LocalS3, role: Listener, fs: CSXFileSystem, bucket: str) -> None:
    """When STS refuses in the midst of a write, the error is of the credentials, and the old object stays."""
    fs.pipe_file(f"{bucket}/key", b"old")
    role.answer = lambda heard: assumed(server, 60)
    mine = opened()
    with pytest.raises(CredentialsError, match=r"'default' gives no credentials.*no longer allowed"):  # noqa: SIM117
        with mine.open(f"{bucket}/key", "wb") as file:
            file.write(b"new")
            role.answer = lambda heard: refused("AccessDenied", "no longer allowed")
    assert fs.cat_file(f"{bucket}/key") == b"old"
    role.answer = lambda heard: refused("ExpiredToken", "The security token included in the request is expired")
    with pytest.raises(ExpiredCredentialsError, match=r"credential source of profile 'default' has expired.*Renew"):
        mine.exists(f"{bucket}/key")
    role.answer = lambda heard: assumed(server, 3600)
    assert mine.cat_file(f"{bucket}/key") == b"old"


def test_sts_that_is_down(role: Listener, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An STS that cannot be reached is an error that names it, and the profile, not the bucket's endpoint."""
    url = f"http://127.0.0.1:{closed_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
    with pytest.raises(EndpointError, match=f"credential source of profile 'default' cannot be reached.*{url}"):
        opened().ls("")


def test_web_identity_is_renewed(
    server: LocalS3, giver: Listener, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token of a pod is read again each time that it is needed."""
    token = tmp_path / "token"
    token.write_text("first-token")
    for name, value in {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_ROLE_ARN": ROLE,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": server.endpoint_url,
        "AWS_ENDPOINT_URL_STS": giver.url,
    }.items():
        monkeypatch.setenv(name, value)
    giver.answer = lambda heard: assumed(server, 60, "AssumeRoleWithWebIdentity")
    fs = opened()
    fs.pipe_file(f"{bucket}/key", b"data")
    token.write_text("second-token")
    assert fs.cat_file(f"{bucket}/key") == b"data"
    assert b"first-token" in giver.heard[0].body
    assert b"second-token" in giver.heard[-1].body
    token.unlink()
    with pytest.raises(CredentialsError, match="gives no credentials"):
        fs.exists(f"{bucket}/key")


def test_container_with_a_token_in_a_file(
    server: LocalS3, giver: Listener, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token with which a container's keys are requested is read again each time."""
    token = tmp_path / "token"
    token.write_text("first-token")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{giver.url}/role")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint_url)
    giver.answer = lambda heard: given(server, 60)
    fs = opened()
    fs.pipe_file(f"{bucket}/key", b"data")
    token.write_text("second-token")
    assert fs.cat_file(f"{bucket}/key") == b"data"
    assert giver.heard[0].headers["authorization"] == "first-token"
    assert giver.heard[-1].headers["authorization"] == "second-token"


BROKEN: dict[str, Answer] = {
    "refused": (403, {}, b'{"code": "AccessDenied", "message": "not yours"}'),
    "down": (500, {}, b"out of order"),
    "cut-off": (200, {}, b'{"AccessKeyId": "ASIA", "SecretAccessKey": "the-secret-that-it-tells", "Tok'),
    "page": (200, {}, b"<html>Log in</html>"),
    "empty": (200, {}, b"{}"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_container_that_gives_nothing(giver: Listener, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What a container answers in place of keys is reported, without what may be a secret in it, after few attempts."""
    monkeypatch.setattr("aiobotocore.utils.AioContainerMetadataFetcher.SLEEP_TIME", 0, raising=False)
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{giver.url}/role")
    giver.answer = lambda heard: BROKEN[kind]
    with pytest.raises(CredentialsError, match="gives no credentials") as caught:
        opened().ls("")
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "the-secret-that-it-tells" not in f"{chain} {chain!r}"
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
    assert 0 < len(giver.heard) <= 5


def test_instance_without_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no instance metadata service answers, the error comes soon, and lists the rules."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        began = time.monotonic()
        with pytest.raises(NoCredentialsError, match="Tried, in order"):
            opened().ls("")
        assert time.monotonic() - began < 30


def test_instance_that_is_not_to_be_asked(giver: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_EC2_METADATA_DISABLED keeps everybody from asking."""
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", giver.url)
    with pytest.raises(NoCredentialsError):
        opened().ls("")
    assert not giver.heard


def test_sso_that_has_expired_in_between(aws_files: Path) -> None:
    """A missing login is reported with the command to log in, and no browser is opened."""
    (aws_files / "config").write_text(
        "[sso-session work]\nsso_start_url = https://example.awsapps.com/start\nsso_region = us-east-1\n"
        "[profile sso]\nsso_session = work\nsso_account_id = 123456789012\nsso_role_name = trainer\n"
    )
    fs = fsspec.filesystem("s3", profile="sso", skip_instance_cache=True)
    for attempt in (fs.ls, fs.exists, fs.cat_file):
        with pytest.raises(ExpiredCredentialsError, match="aws sso login --profile sso"):
            attempt("bucket/key")
