"""cszoo checkpoint doctor: the configuration, its sources, what works, and that it leaves nothing behind."""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import botocore.auth
import fsspec
import fsspec.config
import pytest
from aiobotocore.session import AioSession
from answers import answering, s3_error
from botocore.crt import auth as signers
from commands import DONE, FAILED, USAGE, cszoo, running
from conftest import TENANT_BUCKET, recorded_requests
from forked import python
from proxy import Fault, error_answer, fault_proxy

from fsspec_csx import backends
from fsspec_csx.cli import main
from fsspec_csx.doctor import bucket_checks
from fsspec_csx.doctor.check import Check
from fsspec_csx.doctor.run import checks, parse_url
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

ALWAYS = 10**6
TRIED = ["bucket", "list", "write", "read", "checksums", "conditional write", "multipart", "speed", "delete"]
SETTINGS = ["versions", "s3://", "credentials", "profile", "endpoint", "region", "certificates", "proxy", "cache"]


def found(url: str | None = None, **options: object) -> dict[str, Check]:
    """What the checks found, by their names; the speed is not measured."""
    place = None if url is None else parse_url(url)
    return {check.name: check for check in checks(place, storage_options=options, speed=False)}


def failures(checks: dict[str, Check]) -> list[str]:
    """The names of the checks that failed, each with a remedy."""
    bad = [check for check in checks.values() if check.ok is False]
    assert all(check.remedy for check in bad)
    return [check.name for check in bad]


def unchecked(checks: dict[str, Check]) -> list[str]:
    """The names of what was not checked."""
    return [check.name for check in checks.values() if check.ok is None and check.text.startswith("not checked: ")]


def test_the_cache_is_shown(environment: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a cache is, how large it may be, and what named it; a size that is none is an error."""
    assert found()["cache"].text.startswith("none")
    assert "named by the call, of at most 1,000,000 bytes" in found(cache_dir=tmp_path, cache_size="1MB")["cache"].text
    with backends.scoped_flags({"csx.storage.s3.cache_dir": str(tmp_path)}):
        text = found()["cache"].text
    assert all(part in text for part in (str(tmp_path), "backends.csx.storage.s3.cache_dir", "50,000,000,000 bytes"))
    assert failures(found(cache_dir=tmp_path, cache_size="much")) == ["settings"]


# -- what works ---------------------------------------------------------------------------------------------------


def test_all_is_well(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """With every right all checks pass, in order, what was there stays, and nothing is added."""
    fs.pipe_file(f"{bucket}/run/model.mdl", b"data")
    seen = [*checks((bucket, "run/"))]
    assert [check.name for check in seen] == [*SETTINGS, "reachable", "clock", "signed in", *TRIED]
    assert [check for check in seen if check.ok is not True or check.remedy] == []
    assert fs.find(bucket) == [f"{bucket}/run/model.mdl"]
    report = {check.name: check.text for check in seen}
    assert report["list"] == f"objects below s3://{bucket}/run/: 1"
    assert report["write"].startswith(f"60 bytes to s3://{bucket}/run/.cszoo-doctor-")
    assert report["speed"].endswith("to read, of an object of 32 MiB")
    assert "compares CRC64NVME" in report["checksums"]
    assert "supports If-None-Match" in report["conditional write"]


def test_without_a_bucket(environment: LocalS3, fs: CSXFileSystem) -> None:
    """Without a URL only the identity is requested."""
    with recorded_requests() as operations:
        seen = found()
    assert list(seen) == [*SETTINGS, "reachable", "clock", "signed in"]
    assert failures(seen) == []
    assert operations == ["ListBuckets"]


def test_read_only(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A user who may only read sees which right is lacking; what exists is read."""
    fs.pipe_file(f"{bucket}/run/model.mdl", b"data")
    seen = found(f"s3://{bucket}/run/", **server.storage_options("reader"))
    assert failures(seen) == ["write"]
    assert seen["write"].remedy == f"Ask for s3:PutObject on s3://{bucket}/run/*, or use other credentials."
    assert seen["read"].ok
    assert seen["read"].text == f"a byte of s3://{bucket}/run/model.mdl"
    assert unchecked(seen) == ["checksums", "conditional write", "multipart", "speed", "delete"]
    assert fs.find(bucket) == [f"{bucket}/run/model.mdl"]


def test_read_only_and_nothing_to_read(server: LocalS3, bucket: str) -> None:
    """Where nothing is there and nothing can be written, reading is not checked."""
    seen = found(f"s3://{bucket}", **server.storage_options("reader"))
    assert failures(seen) == ["write"]
    assert seen["read"].text == "not checked: there is nothing to read"


def test_tenant(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """Who has one bucket finds all well there, and in another that it is refused."""
    fs.makedirs(TENANT_BUCKET, exist_ok=True)
    assert failures(found(f"s3://{TENANT_BUCKET}/run", **server.storage_options("tenant"))) == []
    seen = found(f"s3://{bucket}", **server.storage_options("tenant"))
    assert failures(seen) == ["list", "write"]
    assert seen["list"].remedy == f"Ask for s3:ListBucket on s3://{bucket}, or use other credentials."
    assert seen["bucket"].ok is None
    assert fs.find(bucket) == []


def test_refused_list_of_buckets_is_no_failure(server: LocalS3, bucket: str) -> None:
    """Who may not list the buckets is signed in all the same."""
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [
            Fault("GET", when=lambda asked: asked.path == "/", skip=1, answer=error_answer(403, "AccessDenied"))
        ]
        seen = found(f"s3://{bucket}", **{**server.storage_options(), "endpoint_url": proxy.url})
    assert failures(seen) == []
    assert "may not list the buckets" in seen["signed in"].text


def test_server_that_lists_no_buckets(server: LocalS3, bucket: str) -> None:
    """A server that does not know ListBuckets is examined further."""
    with fault_proxy(server.endpoint_url) as proxy:
        answer = error_answer(405, "MethodNotAllowed")
        proxy.faults = [Fault("GET", when=lambda asked: asked.path == "/", skip=1, answer=answer)]
        seen = found(f"s3://{bucket}", **{**server.storage_options(), "endpoint_url": proxy.url})
    assert failures(seen) == []
    assert seen["signed in"].ok is None


@pytest.mark.parametrize("name", ["reader", "admin"])
def test_missing_bucket(server: LocalS3, fs: CSXFileSystem, new_bucket: str, name: str) -> None:
    """A missing bucket is reported with the remedy, and never made."""
    seen = found(f"s3://{new_bucket}/run", **server.storage_options(name))
    assert failures(seen) == ["bucket"]
    assert seen["bucket"].text == f"There is no bucket {new_bucket!r} at {server.endpoint_url}."
    assert unchecked(seen) == TRIED[1:]
    assert not fs.exists(new_bucket)


def test_bucket_that_is_gone_meanwhile_is_not_made(server: LocalS3, fs: CSXFileSystem, new_bucket: str) -> None:
    """Where the bucket seems to be there and is not, the write fails rather than make it."""
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("HEAD", answer=(200, {}, b""))]
        seen = found(f"s3://{new_bucket}", **{**server.storage_options(), "endpoint_url": proxy.url})
    assert failures(seen) == ["list", "write"]
    assert "no bucket" in seen["write"].text
    assert not fs.exists(new_bucket)


@pytest.mark.parametrize("folder", ["100%", "a b/#x", "[ab]*?", "größe/模型", "run//deep"])
def test_any_name(environment: LocalS3, fs: CSXFileSystem, bucket: str, folder: str) -> None:
    """Every character of a folder's name is part of it, and neighbours stay."""
    fs.pipe_file(f"{bucket}/a/model.mdl", b"data")
    seen = found(f"s3://{bucket}/{folder}")
    assert failures(seen) == []
    assert f"s3://{bucket}/{folder}/.cszoo-doctor-" in seen["write"].text
    assert fs.find(bucket) == [f"{bucket}/a/model.mdl"]


def test_large_folder(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """Only the first objects of a folder are listed."""
    fs.pipe({f"{bucket}/run/{number}": b"" for number in range(21)})
    assert found(f"s3://{bucket}/run")["list"].text == f"objects below s3://{bucket}/run/: at least 20"


# -- what does not ------------------------------------------------------------------------------------------------


def test_wrong_secret(server: LocalS3, bucket: str) -> None:
    """A wrong secret is reported as such, once, and nothing further is tried."""
    seen = found(f"s3://{bucket}", **{**server.storage_options(), "secret": "not-the-secret-of-anybody"})
    assert failures(seen) == ["signed in"]
    assert seen["signed in"].remedy == "Check the access key and its secret, and that they belong to this endpoint."
    assert unchecked(seen) == TRIED


def test_no_credentials(environment: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the settings and the endpoint are reported all the same."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    seen = found("s3://bucket")
    assert failures(seen) == ["credentials"]
    assert seen["credentials"].text.startswith("No S3 credentials were found. Tried, in order: 1. ")
    assert seen["endpoint"].text == f"{environment.endpoint_url}, named by AWS_ENDPOINT_URL_S3"
    assert seen["reachable"].ok
    assert unchecked(seen) == ["signed in", *TRIED]


def test_unknown_profile(environment: LocalS3, aws_files: Path) -> None:
    """An unknown profile is reported with those that are there."""
    (aws_files / "config").write_text("[profile work]\nregion = us-east-1\n")
    seen = found("s3://bucket", profile="nowhere")
    assert failures(seen) == ["credentials"]
    assert "'nowhere'" in seen["credentials"].text
    assert "the profiles there: work" in seen["credentials"].text
    assert unchecked(seen) == ["reachable", "clock", "signed in", *TRIED]


def test_half_a_pair(environment: LocalS3) -> None:
    """An access key without its secret is reported as such."""
    seen = found(key="half-a-pair")
    assert failures(seen) == ["credentials"]
    assert "the key without the secret" in seen["credentials"].text


def test_endpoint_that_is_none() -> None:
    """An endpoint without http:// is reported as such."""
    seen = found(key="k", secret="s", endpoint_url="localhost:8333")
    assert failures(seen) == ["settings"]
    assert "localhost:8333" in seen["settings"].text


def test_endpoint_down(closed_port: int) -> None:
    """An endpoint without a server is named."""
    url = f"http://127.0.0.1:{closed_port}"
    seen = found("s3://bucket", key="k", secret="s", endpoint_url=url)
    assert failures(seen) == ["reachable"]
    assert seen["reachable"].text == f"The endpoint {url} cannot be reached."
    assert unchecked(seen) == ["clock", "signed in", *TRIED]


def test_endpoint_that_never_answers() -> None:
    """An endpoint that takes connections and says nothing is reported after one timeout."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        seen = found("s3://b-b", key="k", secret="s", endpoint_url=url, config_kwargs={"read_timeout": 0.5})
    assert failures(seen) == ["reachable"]
    assert "did not answer in time" in seen["reachable"].text


def test_endpoint_behind_a_dead_proxy(server: LocalS3, closed_port: int) -> None:
    """A proxy that cannot be reached is named without its password."""
    for scheme in ("http://", ""):
        proxies = {"http": f"{scheme}user:password-of-proxy@127.0.0.1:{closed_port}"}
        seen = found(**server.storage_options(), config_kwargs={"proxies": proxies})
        assert failures(seen) == ["reachable"]
        assert f"127.0.0.1:{closed_port}" in seen["reachable"].text
        assert seen["proxy"].text == f"http://127.0.0.1:{closed_port} on the way to the endpoint"
        assert "password-of-proxy" not in str(seen)
    for odd in ("http://user:pass/word-of-proxy@", "http:/user:word-of-proxy@", "user:pass://word-of-proxy@"):
        seen = found(**server.storage_options(), config_kwargs={"proxies": {"http": f"{odd}127.0.0.1:{closed_port}"}})
        assert failures(seen) == ["credentials", "reachable"]
        assert "Write %2F for /" in str(seen["credentials"])
        assert "word-of-proxy" not in str(seen)


def test_endpoint_that_is_no_s3() -> None:
    """A web page in the endpoint's place is reported as such."""
    with answering(200, b"<html><body>Welcome!", "text/html") as url:
        seen = found("s3://bucket", key="k", secret="s", endpoint_url=url)
    assert failures(seen) == ["reachable"]
    assert "a web page" in seen["reachable"].text
    assert unchecked(seen) == ["signed in", *TRIED]


def test_wrong_region() -> None:
    """A server of another region is reported with the region to set."""
    body = s3_error("AuthorizationHeaderMalformed", "As AWS puts it", "<Region>eu-west-3</Region>")
    with answering(400, body) as url:
        seen = found("s3://bucket", key="k", secret="s", endpoint_url=url)
    assert failures(seen) == ["signed in"]
    assert "'eu-west-3'" in seen["signed in"].remedy


def test_endpoint_that_is_not_available() -> None:
    """A gateway without a server behind it is reported as such."""
    with answering(502, b"Bad Gateway", "text/plain") as url:
        seen = found(key="k", secret="s", endpoint_url=url)
    assert failures(seen) == ["reachable"]
    assert "502" in seen["reachable"].text


def test_untrusted_certificate(secure_server: tuple[LocalS3, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown authority is reported with the remedy, and the remedy works and is shown."""
    server, authority = secure_server
    seen = found(**server.storage_options())
    assert failures(seen) == ["reachable"]
    assert "AWS_CA_BUNDLE" in seen["reachable"].remedy
    assert "as no bundle is named" in seen["certificates"].text
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    seen = found(**server.storage_options())
    assert failures(seen) == []
    assert "by TLS" in seen["reachable"].text
    assert seen["certificates"].text == f"{authority}, named by AWS_CA_BUNDLE"
    seen = found(**server.storage_options(), client_kwargs={"verify": False})
    assert seen["certificates"].ok is None
    assert seen["certificates"].text == "none are checked, as verify is False"
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
    assert "certificates" in failures(found(**server.storage_options()))


@pytest.mark.parametrize(("seconds", "ok"), [(-7200, False), (7200, False), (-300, True), (300, True)])
def test_clock_by_the_date(server: LocalS3, seconds: int, ok: bool) -> None:
    """A server whose date is another is noticed; up to 15 minutes it does no harm."""
    there = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault(headers={"Date": there.strftime("%a, %d %b %Y %H:%M:%S GMT")})]
        seen = found(**{**server.storage_options(), "endpoint_url": proxy.url})
    assert seen["clock"].ok is ok
    assert ("ahead of" if seconds < 0 else "behind") in seen["clock"].text
    assert failures(seen) == ([] if ok else ["clock"])


def test_clock_that_the_server_refuses(server: LocalS3) -> None:
    """A signature of another hour is refused, and reported as such."""
    late = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)

    def now(remove_tzinfo: bool = True) -> datetime.datetime:
        return late.replace(tzinfo=None) if remove_tzinfo else late

    clocks = [patch.object(module, "get_current_datetime", now) for module in (botocore.auth, signers)]
    with clocks[0], clocks[1]:
        seen = found(**server.storage_options())
    assert failures(seen) == ["signed in"]
    assert seen["signed in"].remedy == "Set the clock, for instance by NTP."


# -- what servers know --------------------------------------------------------------------------------------------


def test_server_that_refuses_checksums(server: LocalS3, bucket: str) -> None:
    """A server that refuses checksums is served without, which is reported and no failure."""
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [
            Fault(
                when=lambda asked: bool({"x-amz-checksum-crc64nvme", "x-amz-checksum-algorithm"} & {*asked.headers}),
                times=ALWAYS,
                answer=error_answer(501, "NotImplemented"),
            )
        ]
        seen = found(f"s3://{bucket}", **{**server.storage_options(), "endpoint_url": proxy.url})
    assert failures(seen) == []
    assert seen["checksums"].ok is None
    assert "refuses CRC64NVME" in seen["checksums"].text
    assert seen["multipart"].ok


def test_server_that_ignores_headers(moto: str, new_bucket: str) -> None:
    """A server that compares no checksums is distinguished from one that does."""
    options = {"key": "key-of-moto", "secret": "secret-of-moto", "endpoint_url": moto}
    fsspec.filesystem("s3", **options).mkdir(new_bucket)
    seen = found(f"s3://{new_bucket}", **options)
    assert failures(seen) == []
    assert seen["checksums"].ok is None
    assert "compares nothing" in seen["checksums"].text
    assert seen["bucket"].text == f"{new_bucket!r} is there, in region us-east-1"
    assert fsspec.filesystem("s3", **options, use_listings_cache=False).find(new_bucket) == []


@pytest.mark.parametrize(("status", "says"), [(501, "does not support If-None-Match"), (200, "ignores If-None-Match")])
def test_server_without_conditions(server: LocalS3, bucket: str, status: int, says: str) -> None:
    """A server that does not know If-None-Match, or ignores it, is reported, and it is no failure."""
    answer = (200, {"ETag": '"0"'}, b"") if status == 200 else error_answer(501, "NotImplemented")
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("PUT", when=lambda asked: "if-none-match" in asked.headers, times=ALWAYS, answer=answer)]
        seen = found(f"s3://{bucket}", **{**server.storage_options(), "endpoint_url": proxy.url})
    assert failures(seen) == []
    assert seen["conditional write"].ok is None
    assert says in seen["conditional write"].text


def test_upload_in_parts_that_is_refused(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A server without uploads in parts fails that check alone, and nothing is left."""
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("POST", query="uploadId", times=ALWAYS, answer=error_answer(403, "AccessDenied"))]
        seen = found(f"s3://{bucket}", **{**server.storage_options(), "endpoint_url": proxy.url})
    assert failures(seen) == ["multipart"]
    assert "s3:PutObject" in seen["multipart"].remedy
    assert fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads") is None
    assert fs.find(bucket) == []


def test_upload_that_may_not_be_aborted(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """The right to abort uploads is checked, without leaving an upload behind."""
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("DELETE", query="uploadId", times=ALWAYS, answer=error_answer(403, "AccessDenied"))]
        seen = found(f"s3://{bucket}", **{**server.storage_options(), "endpoint_url": proxy.url})
    assert failures(seen) == ["multipart"]
    assert "s3:AbortMultipartUpload" in seen["multipart"].remedy
    assert fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads") is None


def test_object_that_may_not_be_deleted(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """What cannot be removed is named."""
    with fault_proxy(server.endpoint_url) as proxy:
        refused = error_answer(403, "AccessDenied")
        proxy.faults = [Fault("DELETE", when=lambda asked: "uploadId" not in asked.query, times=9, answer=refused)]
        seen = found(f"s3://{bucket}/run", **{**server.storage_options(), "endpoint_url": proxy.url})
        assert len([one for one in proxy.made("DELETE") if "uploadId" not in one.query]) == 1
    assert failures(seen) == ["delete"]
    (left,) = fs.find(bucket)
    assert f"The object s3://{left} stays." in seen["delete"].text
    assert seen["delete"].remedy == f"Ask for s3:DeleteObject on s3://{bucket}/run/*, or use other credentials."


def test_bucket_with_versions(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """In a bucket that keeps versions none of ours stay, and all of others do."""
    fs.call_s3("put_bucket_versioning", Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    fs.pipe_file(f"{bucket}/model.mdl", b"1")
    fs.pipe_file(f"{bucket}/model.mdl", b"2")
    seen = found(f"s3://{bucket}")
    assert failures(seen) == []
    assert seen["delete"].text.endswith(", and its versions")
    kept = fs.call_s3("list_object_versions", Bucket=bucket)
    assert [each["Key"] for each in kept["Versions"]] == ["model.mdl", "model.mdl"]
    assert not kept.get("DeleteMarkers")


def test_damaged_answer(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """What comes back otherwise than it was written is a failure, and the object is removed."""
    with fault_proxy(server.endpoint_url) as proxy:
        # The server's checksum is left out, so that only the comparison can notice.
        proxy.faults = [
            Fault("GET", when=lambda asked: "cszoo-doctor" in asked.path, flip_down=5, headers={
                "x-amz-checksum-crc64nvme": "", "x-amz-checksum-type": "COMPOSITE", "ETag": '"x-1"'})
        ]  # fmt: skip
        seen = found(f"s3://{bucket}", **{**server.storage_options(), "endpoint_url": proxy.url})
    assert failures(seen) == ["read"]
    assert fs.find(bucket) == []


def test_left_in_the_midst(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """Who stops halfway finds the object removed."""
    made = checks((bucket, ""), speed=False)
    for check in made:
        if check.name == "write":
            assert len(fs.find(bucket)) == 1
            break
    made.close()
    assert fs.find(bucket) == []


def test_interrupted(environment: LocalS3, fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the midst leaves nothing behind."""

    def interrupt(self: bucket_checks.BucketChecks) -> Check:
        raise KeyboardInterrupt

    monkeypatch.setattr(bucket_checks.BucketChecks, "_measure", interrupt)
    assert main(["checkpoint", "doctor", f"s3://{bucket}"]) == 130
    assert fs.find(bucket) == []


@pytest.mark.slow
def test_terminated(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A command that is terminated in the middle leaves nothing behind."""
    with fault_proxy(server.endpoint_url) as proxy:
        large = Fault("GET", when=lambda asked: "cszoo-doctor" in asked.path, skip=1, stall_down=1000)
        proxy.faults = [large]
        environment = {**os.environ, **server.environment(), "AWS_ENDPOINT_URL_S3": proxy.url}
        command = [*python(), "-m", "fsspec_csx", "checkpoint", "doctor", f"s3://{bucket}"]
        with running(command, env=environment, stdout=subprocess.DEVNULL) as process:
            while large.times:
                assert process.poll() is None
                time.sleep(0.02)
            assert len(fs.find(bucket)) == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(100) == 143
        assert fs.find(bucket) == []


@pytest.mark.slow
def test_slow_server_is_measured_with_little(server: LocalS3, bucket: str) -> None:
    """Where a small object takes long, no large one is sent."""
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("PUT", when=lambda asked: int(asked.headers["content-length"]) > 2**20, delay=1.1)]
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        seen = {check.name: check for check in checks((bucket, ""), storage_options=options)}
    assert seen["speed"].text.endswith("of an object of 2 MiB")
    assert seen["speed"].text.startswith(("1 MB/s", "2 MB/s"))


# -- where settings come from -------------------------------------------------------------------------------------


def write_keys(folder: Path, *names: str) -> None:
    """Profiles whose access keys are named after them."""
    lines = (
        f"[{name}]\naws_access_key_id = KEYOF{name.upper()}000\naws_secret_access_key = s3cret\n" for name in names
    )
    (folder / "credentials").write_text("".join(lines))


def test_rules_in_order(environment: LocalS3, aws_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials in use are reported with the rule that gave them, in each of the rules' cases."""
    write_keys(aws_files, "default", "work", "flag", "conf")
    file = aws_files / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def report(**options: object) -> str:
        return found(**options)["credentials"].text

    assert report() == f"access key KEYO...T000 from profile 'default' in {file} (rule 5)"
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert report() == f"access key KEYO...K000 from profile 'work' in {file} (rule 4)"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEYOFENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    in_environment = "access key KEYO...MENT from AWS_ACCESS_KEY_ID in the environment (rule 4)"
    assert report() == f"{in_environment}; AWS_PROFILE counts for all but the credentials"
    unused = "; AWS_ACCESS_KEY_ID in the environment is not used"
    fsspec.config.conf["s3"] = {"profile": "conf"}
    assert report() == f"access key KEYO...F000 from profile 'conf' in {file} (rule 3){unused}"
    backends.csx.storage.s3.profile = "flag"
    assert report() == f"access key KEYO...G000 from profile 'flag' in {file} (rule 2){unused}"
    assert report(profile_name="work") == f"access key KEYO...K000 from profile 'work' in {file} (rule 1){unused}"
    assert report(key="KEYOFTHECALL", secret="s") == f"access key KEYO...CALL, named by the call (rule 1){unused}"
    named = report(key="short", secret="s", token="t")
    assert named == f"temporary access key ..., named by the call (rule 1){unused}"


def test_source_of_the_profile(environment: LocalS3, aws_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile in use is reported with what names it."""
    write_keys(aws_files, "default", "work")

    def report(**options: object) -> str:
        return found(**options)["profile"].text

    assert report() == "'default', as none is named"
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert report() == "'work', named by AWS_PROFILE"
    fsspec.config.conf["s3"] = {"profile": "work"}
    assert report() == "'work', named by the fsspec configuration"
    monkeypatch.setenv("FSSPEC_S3_PROFILE", "work")
    assert report() == "'work', named by FSSPEC_S3_PROFILE"
    backends.csx.storage.s3.profile = "work"
    assert report() == "'work', named by backends.csx.storage.s3.profile"
    assert report(profile="default") == "'default', named by the call"
    assert report(session=AioSession(profile="work")) == "'work', of the session that the call names"


def test_kinds_of_credentials(environment: LocalS3, aws_files: Path, moto: str) -> None:
    """Programs, roles and anonymous access are reported as what they are."""
    printed = '{"Version": 1, "AccessKeyId": "KEYOFPROCESS0", "SecretAccessKey": "secret-of-process"}'
    script = aws_files / "print_keys.py"
    script.write_text(f"print('{printed}')")
    (aws_files / "config").write_text(f"""
[profile program]
credential_process = {sys.executable} {script}
[profile base]
aws_access_key_id = KEYOFBASE0000
aws_secret_access_key = secret-of-base
[profile role]
role_arn = arn:aws:iam::123456789012:role/trainer
source_profile = base
region = eu-central-1
services = moto
[services moto]
sts =
  endpoint_url = {moto}
""")
    program = found(profile="program")["credentials"].text
    assert program.startswith("access key KEYO...ESS0 from the credential_process of profile 'program' (rule 1)")
    role = found(profile="role")["credentials"].text
    assert role.startswith("temporary access key ASIA")
    assert "from the role that profile 'role' assumes, renewed before 20" in role
    config = found(profile="base")["credentials"].text
    assert f"from profile 'base' in {aws_files / 'config'} (rule 1)" in config
    anonymous = found(anon=True)
    assert anonymous["credentials"].text == "none: anonymous access, as the call has it"
    assert anonymous["signed in"].ok is None


@pytest.mark.parametrize(
    ("config", "variable", "options", "source"),
    [
        ("", "", {"endpoint_url": "{url}"}, "named by the call"),
        ("", "", {"client_kwargs": {"endpoint_url": "{url}"}}, "named by client_kwargs of the call"),
        ("", "AWS_ENDPOINT_URL_S3", {}, "named by AWS_ENDPOINT_URL_S3"),
        ("", "AWS_ENDPOINT_URL", {}, "named by AWS_ENDPOINT_URL"),
        ("endpoint_url = {url}\n", "", {}, "endpoint_url of profile 'default'"),
        (
            "services = mine\nendpoint_url = http://127.0.0.1:1\n[services mine]\ns3 =\n  endpoint_url = {url}\n",
            "",
            {},
            "named by services 'mine' of profile 'default'",
        ),
    ],
)
def test_source_of_the_endpoint(
    aws_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: str,
    variable: str,
    options: dict[str, object],
    source: str,
) -> None:
    """The endpoint is the one that is used, and reported with what names it."""
    with answering(403, b"") as url:
        (aws_files / "config").write_text(f"[default]\n{config.replace('{url}', url)}")
        if variable:
            monkeypatch.setenv(variable, url)
        given = json.loads(json.dumps(options).replace("{url}", url))
        seen = found(anon=True, **given)
    assert seen["endpoint"].text == f"{url}, {source}"
    assert seen["reachable"].ok


def test_amazon_is_the_default_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no endpoint is named it is Amazon's own, here behind a proxy of the tests."""
    with answering(403, b"") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
        monkeypatch.setenv("http_proxy", url)
        seen = found(anon=True, use_ssl=False)
    assert seen["endpoint"].text.startswith("http://s3.")
    assert seen["endpoint"].text.endswith("amazonaws.com, Amazon's own, as configured ones are to be ignored")
    assert seen["proxy"].text == f"{url} on the way to the endpoint"
    assert seen["reachable"].ok


def test_source_of_the_region(environment: LocalS3, aws_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The region is reported with its source, and a variable that botocore does not read as such."""
    monkeypatch.delenv("AWS_REGION")
    (aws_files / "config").write_text("[profile work]\nregion = eu-west-3\n[profile plain]\n")

    def report(**options: object) -> str:
        return found(**environment.storage_options(), **options)["region"].text

    assert report() == "us-east-1, named by AWS_DEFAULT_REGION"
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert report() == "us-east-1, named by AWS_DEFAULT_REGION; AWS_REGION in the environment is not read"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION")
    assert report(profile="work") == "eu-west-3, region of profile 'work'"
    named = report(client_kwargs={"region_name": "eu-north-1"})
    assert named == "eu-north-1, named by client_kwargs of the call"
    assert report().endswith(", as none is named")


def test_another_package_took_s3(environment: LocalS3) -> None:
    """Where s3:// is opened by another class, it is reported with the remedy."""
    import s3fs

    ours = fsspec.get_filesystem_class("s3")
    fsspec.register_implementation("s3", s3fs.S3FileSystem, clobber=True)
    try:
        seen = found()
    finally:
        fsspec.register_implementation("s3", ours, clobber=True)
    assert failures(seen) == ["s3://"]
    assert "s3fs.core.S3FileSystem" in seen["s3://"].text


@pytest.mark.parametrize("first", ["ours", "foreign"])
def test_command_of_another_package(
    environment: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Which cszoo the shell runs is said where another package has one."""
    for name, line in (("ours", "from fsspec_csx.cli import main"), ("foreign", "from another.cli import main")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cszoo").write_text(f"#!/usr/bin/env python\n{line}\n")
        (tmp_path / name / "cszoo").chmod(0o755)
    folders = [str(tmp_path / name) for name in sorted(["ours", "foreign"], key=lambda name: name != first)]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    seen = found()["command"]
    assert seen.text.startswith(f"cszoo is {folders[0]}/cszoo")
    assert ("fsspec-csx" in seen.remedy) == (first == "foreign")


# -- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["s3:/bucket", "s3://", "bucket", "memory://bucket/run", "simplecache::s3://b/run"])
def test_wrong_usage(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no S3 URL is wrong usage, and a ValueError from Python."""
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", "doctor", url])
    assert left.value.code == USAGE
    assert "Give a bucket, or a folder in one" in capsys.readouterr().err
    with pytest.raises(ValueError, match="Give a bucket, or a folder in one"):
        parse_url(url)


def test_command(server: LocalS3, aws_files: Path, bucket: str) -> None:
    """The command prints a line for each check, names the options given to it, and ends well."""
    identity = server.identity
    (aws_files / "credentials").write_text(
        f"[work]\naws_access_key_id = {identity.access_key}\naws_secret_access_key = {identity.secret_key}\n"
    )
    arguments = ["-p", "work", "--endpoint-url", server.endpoint_url, "--no-speed"]
    done = cszoo("doctor", f"s3://{bucket}", *arguments)
    assert (done.returncode, done.stderr) == (DONE, "")
    lines = done.stdout.splitlines()
    assert [line[8:25].strip() for line in lines] == [*SETTINGS, "reachable", "clock", "signed in", *TRIED]
    assert {line[:6].strip() for line in lines} == {"ok", "-"}
    assert f"endpoint           {server.endpoint_url}, named by the command line" in done.stdout
    assert "profile            'work', named by the command line" in done.stdout
    assert f"{identity.access_key[:4]}...{identity.access_key[-4:]}" in done.stdout
    for secret in (identity.secret_key, identity.access_key):
        assert secret not in done.stdout


@pytest.mark.slow
def test_command_that_fails(server: LocalS3, bucket: str) -> None:
    """A check that failed has its remedy on the next line, and the command fails."""
    done = cszoo("doctor", f"s3://{bucket}", environment=server.environment("reader"))
    assert (done.returncode, done.stderr) == (FAILED, "")
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FAILED"))
    assert "write" in lines[at]
    assert lines[at + 1].strip() == f"Ask for s3:PutObject on s3://{bucket}/*, or use other credentials."
    assert server._find("reader").secret_key not in done.stdout


def test_json(environment: LocalS3, bucket: str, new_bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints one document, with the checks as Python gives them."""
    assert main(["checkpoint", "doctor", f"s3://{bucket}", "--no-speed", "--json"]) == DONE
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert [check["name"] for check in report["checks"]][-len(TRIED) :] == TRIED
    assert main(["checkpoint", "doctor", f"s3://{new_bucket}", "--json", "--quiet"]) == FAILED
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    (bad,) = (check for check in report["checks"] if check["ok"] is False)
    assert bad["name"] == "bucket"
    assert bad["remedy"].startswith("Check its name")


def test_no_secret_anywhere(
    server: LocalS3,
    bucket: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither secrets, tokens nor passwords show in what is printed or logged, whatever goes wrong."""
    caplog.set_level("DEBUG")
    secrets = ["wrong-secret-of-nobody", "token-of-nobody-at-all", "password-of-nobody", server.identity.secret_key]
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    assert main(["checkpoint", "doctor", f"s3://{bucket}", "--no-speed"]) == DONE
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secrets[0])
    monkeypatch.setenv("AWS_SESSION_TOKEN", secrets[1])
    assert main(["checkpoint", "doctor", f"s3://{bucket}"]) == FAILED
    url = f"http://user:{secrets[2]}@127.0.0.1:1"
    assert main(["checkpoint", "doctor", f"s3://{bucket}", "--json", "--endpoint-url", url]) == FAILED
    output = "".join(capsys.readouterr())
    assert "signed in" in output
    for secret in secrets:
        assert secret not in output
    for secret in (secrets[0], secrets[1], secrets[3]):
        assert secret not in caplog.text
