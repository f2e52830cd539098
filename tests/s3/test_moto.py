"""Features that SeaweedFS lacks, on moto: assumed roles, region rules, encryption headers."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from answers import answering, s3_error

from fsspec_csx.errors import AccessDeniedError


@pytest.fixture
def profiles(aws_files: Path, moto: str) -> Path:
    """A profile with keys, and one that assumes a role by them."""
    (aws_files / "config").write_text(f"""
[profile base]
aws_access_key_id = key-of-base
aws_secret_access_key = secret-of-base
[profile role]
role_arn = arn:aws:iam::123456789012:role/trainer
source_profile = base
region = eu-central-1
endpoint_url = {moto}
[profile east]
region = us-east-1
aws_access_key_id = key-of-east
aws_secret_access_key = secret-of-east
endpoint_url = {moto}
""")
    return aws_files


def test_assumed_role(profiles: Path, new_bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """A profile that assumes a role signs with the role's short-lived keys, and no log shows them."""
    caplog.set_level(logging.DEBUG)
    fs = fsspec.filesystem("s3", profile="role", skip_instance_cache=True)
    fs.pipe_file(f"{new_bucket}/key", b"data")
    assert fs.cat_file(f"{new_bucket}/key") == b"data"
    signed = fs.sign(f"{new_bucket}/key")
    assert "ASIA" in signed
    assert "key-of-base" not in signed
    credentials = fs.session._credentials
    assert credentials.method == "assume-role"
    assert credentials._secret_key not in caplog.text
    assert credentials._token not in caplog.text


@pytest.mark.parametrize(("profile", "region"), [("role", "eu-central-1"), ("east", None)])
def test_bucket_is_made_in_the_region_of_the_session(
    profiles: Path, new_bucket: str, profile: str, region: str | None
) -> None:
    """A bucket gets the session's region; us-east-1 is sent without a constraint, which S3 would refuse."""
    fs = fsspec.filesystem("s3", profile=profile)
    fs.pipe_file(f"{new_bucket}-{profile}/key", b"data")
    assert fs.call_s3("get_bucket_location", Bucket=f"{new_bucket}-{profile}").get("LocationConstraint") == region


@pytest.mark.parametrize("size", [3, 11 * 2**20])
def test_encryption_headers(profiles: Path, new_bucket: str, size: int) -> None:
    """Server-side encryption that is set once applies to every write."""
    kms = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "arn:aws:kms:us-east-1:123456789012:key/abc"}
    fs = fsspec.filesystem("s3", profile="east", s3_additional_kwargs=kms)
    path = f"{new_bucket}/key"
    with fs.open(path, "wb", block_size=5 * 2**20) as file:
        file.write(b"x" * size)
    stored = fs.call_s3("head_object", Bucket=new_bucket, Key="key")
    assert (stored["ServerSideEncryption"], stored["SSEKMSKeyId"]) == ("aws:kms", kms["SSEKMSKeyId"])
    assert fs.cat_file(path) == b"x" * size


def test_role_that_may_not_be_assumed(aws_files: Path) -> None:
    """A role that STS refuses is reported at the first use, with the profile's name."""
    denied = (
        b"<ErrorResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><Error><Type>Sender</Type>"
        b"<Code>AccessDenied</Code><Message>not authorized to perform: sts:AssumeRole</Message></Error></ErrorResponse>"
    )
    with answering(403, denied, "text/xml") as url:
        (aws_files / "config").write_text(f"""
[profile base]
aws_access_key_id = key-of-base
aws_secret_access_key = secret-of-base
[profile role]
role_arn = arn:aws:iam::123456789012:role/trainer
source_profile = base
region = eu-central-1
endpoint_url = {url}
""")
        with (
            pytest.raises(PermissionError, match=r"'role'.*sts:AssumeRole"),
            fsspec.open("s3://bucket/key", "wb", profile="role"),
        ):
            pytest.fail("opened without a role")


def test_copy_makes_the_bucket(profiles: Path, new_bucket: str) -> None:
    """A copy into a missing bucket makes it, as every write does."""
    fs = fsspec.filesystem("s3", profile="east")
    fs.pipe_file(f"{new_bucket}-a/key", b"data")
    fs.cp_file(f"{new_bucket}-a/key", f"{new_bucket}-b/key")
    assert fs.cat_file(f"{new_bucket}-b/key") == b"data"


def test_bucket_name_taken(profiles: Path, new_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is someone else's cannot be made, and the error says so."""
    with answering(409, s3_error("BucketAlreadyExists")) as url:
        fs = fsspec.filesystem("s3", key="k", secret="s", endpoint_url=url)
        with pytest.raises(AccessDeniedError, match=f"{new_bucket}.*someone else"):
            fs.call_s3("create_bucket", Bucket=new_bucket)


@pytest.mark.slow
def test_sso(aws_files: Path) -> None:
    """A profile with an SSO session uses the cached login, and an expired one says how to log in."""
    role = {"accessKeyId": "ASIAKEYOFSSO", "secretAccessKey": "secret-of-sso", "sessionToken": "token-of-sso",
            "expiration": 4102444800000}  # fmt: skip
    cache = aws_files / "sso" / "cache"
    cache.mkdir(parents=True)
    token = cache / f"{hashlib.sha1(b'work').hexdigest()}.json"
    with answering(200, json.dumps({"roleCredentials": role}).encode(), "application/json") as url:
        (aws_files / "config").write_text(f"""
[sso-session work]
sso_start_url = https://example.awsapps.com/start
sso_region = us-east-1
[profile sso]
sso_session = work
sso_account_id = 123456789012
sso_role_name = trainer
region = us-east-1
endpoint_url = {url}
""")
        code = "import fsspec; print(fsspec.filesystem('s3', profile='sso').sign('bucket/key'))"
        command = [sys.executable, "-c", code]  # botocore fixes the cache's folder when it is imported
        cached = {"accessToken": "cached", "startUrl": "https://example.awsapps.com/start"}
        token.write_text(json.dumps({**cached, "expiresAt": "2099-01-01T00:00:00Z"}))
        assert "ASIAKEYOFSSO" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
        token.write_text(json.dumps({**cached, "expiresAt": "2020-01-01T00:00:00Z"}))
        expired = subprocess.run(command, check=False, capture_output=True, text=True)
        assert expired.returncode
        assert "ExpiredCredentialsError" in expired.stderr
        assert "aws sso login --profile sso" in expired.stderr


def test_container_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the credentials come from the address that its environment names."""
    role = {"AccessKeyId": "ASIAKEYOFCONTAINER", "SecretAccessKey": "secret-of-it", "Token": "token-of-it",
            "Expiration": "2099-01-01T00:00:00Z"}  # fmt: skip
    with answering(200, json.dumps(role).encode(), "application/json") as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/role")
        assert "ASIAKEYOFCONTAINER" in fsspec.filesystem("s3").sign("bucket/key")


def test_web_identity(moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_bucket: str) -> None:
    """In a pod the credentials are those of the role that its token stands for."""
    (tmp_path / "token").write_text("the-token-of-the-pod")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/trainer")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    fs = fsspec.filesystem("s3")
    fs.pipe_file(f"{new_bucket}/key", b"data")
    assert "ASIA" in fs.sign(f"{new_bucket}/key")
