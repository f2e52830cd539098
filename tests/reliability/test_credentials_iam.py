"""Policies of IAM, as moto applies them: allowed operations work, and others are refused by name."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from botocore.session import Session

import fsspec_csx
from fsspec_csx.cli import main
from fsspec_csx.errors import AccessDeniedError
from fsspec_csx.s3.client.credentials import mask
from fsspec_csx.s3.filesystem import CSXFileSystem

MINE, OTHERS, LOCKED = "s3://policies/mine", "s3://policies/others", "s3://policies/locked"
STATE = {"w": torch.arange(1000)}
LARGE = {"w": torch.zeros(11 * 2**20, dtype=torch.uint8)}
DONE, FAILED = 0, 3
_TRUST = "arn:aws:iam::123456789012:user/member"


def allow(actions: str, *resources: str, effect: str = "Allow") -> dict[str, object]:
    """A statement of a policy: actions with spaces between, and buckets or objects that may end in a star."""
    named = [f"s3:{action}" for action in actions.split()]
    return {"Effect": effect, "Action": named, "Resource": [f"arn:aws:s3:::{resource}" for resource in resources]}


_CHANGE = "PutObject DeleteObject AbortMultipartUpload ListMultipartUploadParts"
_POLICIES = {
    "member": [
        allow(f"GetObject {_CHANGE}", "policies/mine/*"),
        allow("ListBucket", "policies"),
        {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"},
    ],
    "reader": [allow("GetObject", "policies/*"), allow("ListBucket", "policies")],
    "unlisting": [allow(f"GetObject {_CHANGE}", "policies/mine/*")],
    "locked out": [allow("*", "*"), allow("PutObject DeleteObject", "policies/locked/*", effect="Deny")],
    "maker": [allow("*", "made-*")],
    "admin": [allow("*", "*")],
    "nobody": [],
}


@dataclass(frozen=True)
class Account:
    """An account with users, one for each policy, and a role.

    Attributes:
        url: of the server.
        keys: access key and secret, by the user's name.
        role: the ARN of a role that the member may assume, and that may only read.
    """

    url: str
    keys: dict[str, tuple[str, str]]
    role: str

    def options(self, name: str) -> dict[str, Any]:
        """What makes a filesystem one of a user."""
        key, secret = self.keys[name]
        return {"key": key, "secret": secret, "endpoint_url": self.url}

    def who(self, name: str) -> str:
        """The user, as a message names them."""
        return re.escape(mask(self.keys[name][0]))


@pytest.fixture(scope="module")
def account(moto: str) -> Account:
    """The account."""
    iam = Session().create_client(
        "iam", endpoint_url=moto, region_name="us-east-1", aws_access_key_id="root", aws_secret_access_key="root"
    )
    keys = {}
    for name, statements in _POLICIES.items():
        user = name.replace(" ", "-")
        iam.create_user(UserName=user)
        if statements:
            document = json.dumps({"Version": "2012-10-17", "Statement": statements})
            iam.put_user_policy(UserName=user, PolicyName="rights", PolicyDocument=document)
        made = iam.create_access_key(UserName=user)["AccessKey"]
        keys[name] = made["AccessKeyId"], made["SecretAccessKey"]
    trusted = {"Effect": "Allow", "Principal": {"AWS": _TRUST}, "Action": "sts:AssumeRole"}
    role = iam.create_role(RoleName="reading", AssumeRolePolicyDocument=json.dumps({"Statement": [trusted]}))["Role"]
    document = json.dumps({"Version": "2012-10-17", "Statement": _POLICIES["reader"]})
    iam.put_role_policy(RoleName="reading", PolicyName="rights", PolicyDocument=document)
    return Account(moto, keys, role["Arn"])


@pytest.fixture
def admin(account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[CSXFileSystem]:
    """A filesystem that may do all, with a checkpoint in each folder; all others have what their policies allow."""
    options = account.options("admin")
    made = fsspec.filesystem("s3", **options, use_listings_cache=False)
    assert isinstance(made, CSXFileSystem)
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on the policies are weighed
    made.makedirs("policies", exist_ok=True)
    for folder in (MINE, OTHERS, LOCKED):
        fsspec_csx.save(STATE, f"{folder}/checkpoint_1.mdl", storage_options=options)
    yield made
    made.rm(list(made.find("policies")))


def become(account: Account, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the environment be that of a user."""
    key, secret = account.keys[name]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", account.url)


def state_of(admin: CSXFileSystem) -> dict[str, object]:
    """All objects, by their ETags, and the unfinished uploads."""
    objects = {path: info["ETag"] for path, info in admin.find("policies", detail=True).items()}
    return {**objects, "uploads": len(admin.list_multipart_uploads("policies"))}


@pytest.mark.parametrize("name", ["member", "unlisting"])
def test_rights_on_a_prefix(
    account: Account, admin: CSXFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """With rights on a prefix alone, checkpoints there are saved, loaded, copied, moved, verified and deleted."""
    become(account, monkeypatch, name)
    local = str(tmp_path / "local.mdl")
    for state in (STATE, LARGE):
        fsspec_csx.save(state, f"{MINE}/new.mdl")
        assert torch.equal(fsspec_csx.load(f"{MINE}/new.mdl")["w"], state["w"])
    for arguments in (
        ("copy", f"{MINE}/new.mdl", local),
        ("copy", "--force", local, f"{MINE}/back.mdl"),
        ("copy", "--force", f"{MINE}/new.mdl", f"{MINE}/copy.mdl"),
        ("verify", f"{MINE}/copy.mdl"),
        ("move", "--force", f"{MINE}/copy.mdl", f"{MINE}/moved.mdl"),
        ("delete", f"{MINE}/moved.mdl", "--yes"),
    ):
        assert main(["checkpoint", *arguments]) == DONE, arguments
    left = {path.rpartition("/")[2] for path in admin.find("policies/mine")}
    assert left == {"checkpoint_1.mdl", "new.mdl", "back.mdl"}


def refused_acts(path: str, local: str, *, reads: bool) -> dict[tuple[str, ...], str]:
    """What is refused to who may not change a path, and to who may not read it either: and the act that it names."""
    acts = {
        ("copy", "--force", local, path): "PutObject",
        ("move", "--force", local, path): "PutObject",
        ("delete", path, "--yes"): "DeleteObject" if reads else "HeadObject",
    }
    if not reads:
        acts |= {
            ("info", path): "HeadObject",
            ("verify", path): "HeadObject",
            ("copy", path, f"{local}.copy"): "HeadObject",
        }
    return acts


@pytest.mark.parametrize(
    ("name", "folder", "reads"),
    [("member", OTHERS, False), ("unlisting", OTHERS, False), ("reader", MINE, True), ("locked out", LOCKED, True)],
)
def test_refused_by_all_names(
    account: Account,
    admin: CSXFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    folder: str,
    reads: bool,
) -> None:
    """What a policy does not allow is a PermissionError with the act, the path and the user, and changes nothing."""
    become(account, monkeypatch, name)
    before, path, local = state_of(admin), f"{folder}/checkpoint_1.mdl", str(tmp_path / "local.mdl")
    fsspec_csx.save(STATE, local)
    for state, act in ((STATE, "PutObject"), (LARGE, "CreateMultipartUpload")):
        with pytest.raises(AccessDeniedError, match=f"{act} on {path} was refused to .*{account.who(name)}"):
            fsspec_csx.save(state, path)
    for arguments, act in refused_acts(path, local, reads=reads).items():
        assert main(["checkpoint", *arguments]) == FAILED, arguments
        report = capsys.readouterr().err
        assert re.search(f"({act}) on {path} was refused to .*{account.who(name)}", report), (arguments, report)
    assert state_of(admin) == before
    assert Path(local).exists()
    if reads:
        assert torch.equal(fsspec_csx.load(path)["w"], STATE["w"])


def test_bucket_that_a_write_makes(
    account: Account, admin: CSXFileSystem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A write makes a bucket of a name that the policy allows; another is refused, and not there."""
    become(account, monkeypatch, "maker")
    fsspec_csx.save(STATE, "s3://made-by-policy/x.mdl")
    assert torch.equal(fsspec_csx.load("s3://made-by-policy/x.mdl")["w"], STATE["w"])
    with pytest.raises(AccessDeniedError, match=f"on s3://other-name.* was refused to .*{account.who('maker')}"):
        fsspec_csx.save(STATE, "s3://other-name/x.mdl")
    assert not admin.exists("other-name")
    admin.rm("made-by-policy", recursive=True)


def test_lists_what_may_be_listed(
    account: Account, admin: CSXFileSystem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A listing that is refused is no empty folder, and names the bucket and the user."""
    become(account, monkeypatch, "reader")
    assert main(["checkpoint", "list", OTHERS]) == DONE
    assert "checkpoint_1.mdl" in capsys.readouterr().out
    for name in ("unlisting", "nobody"):
        become(account, monkeypatch, name)
        assert main(["checkpoint", "list", MINE]) == FAILED
        report = capsys.readouterr().err
        assert re.search(f"ListObjectsV2 on s3://policies was refused to .*{account.who(name)}", report), report
        with pytest.raises(PermissionError):
            fsspec.filesystem("s3").ls(MINE)


def test_role(
    account: Account,
    admin: CSXFileSystem,
    aws_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A profile that assumes a role has the rights of the role, and not of the user who assumes it."""
    caplog.set_level(logging.DEBUG)
    key, secret = account.keys["member"]
    (aws_files / "config").write_text(f"""
[profile member]
aws_access_key_id = {key}
aws_secret_access_key = {secret}
region = us-east-1
[profile reading]
role_arn = {account.role}
source_profile = member
region = us-east-1
endpoint_url = {account.url}
""")
    options = {"profile": "reading"}
    assert torch.equal(fsspec_csx.load(f"{OTHERS}/checkpoint_1.mdl", storage_options=options)["w"], STATE["w"])
    with pytest.raises(AccessDeniedError, match=f"PutObject on {MINE}/new.mdl was refused to .*'reading'"):
        fsspec_csx.save(STATE, f"{MINE}/new.mdl", storage_options=options)
    assert secret not in caplog.text
