"""Half a pair of credentials is an error that names the missing half and the source, whatever the source is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fsspec
import fsspec.config
import pytest

from fsspec_csx.errors import IncompleteCredentialsError

KEY, SECRET, TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
# What is given, and what is missing.
HALVES = [
    ([KEY], SECRET),
    ([SECRET], KEY),
    ([KEY, TOKEN], SECRET),
    ([SECRET, TOKEN], KEY),
    ([TOKEN], f"{KEY} and {SECRET}"),
]
OPTIONS = {KEY: "key", SECRET: "secret", TOKEN: "token"}


def message_of(**options: object) -> str:
    """What the first use of a filesystem says is wrong with its credentials."""
    with pytest.raises(IncompleteCredentialsError) as caught:
        fsspec.filesystem("s3", skip_instance_cache=True, **options).sign("bucket/key")
    text = str(caught.value)
    assert "value-of" not in text
    return text


def named(lacks: str) -> str:
    """What is missing, as options name it."""
    return "the " + lacks.replace(KEY, "key").replace(SECRET, "secret")


def section(name: str, given: Sequence[str]) -> str:
    """A section of an AWS file."""
    return f"[{name}]\nregion = us-east-1\n" + "".join(f"{each.lower()} = value-of-{each}\n" for each in given)


@pytest.fixture
def whole_default(aws_files: Path) -> Path:
    """AWS files whose default profile is whole."""
    (aws_files / "credentials").write_text(section("default", [KEY, SECRET]))
    return aws_files


@pytest.mark.parametrize(("given", "lacks"), HALVES)
def test_environment(whole_default: Path, monkeypatch: pytest.MonkeyPatch, given: Sequence[str], lacks: str) -> None:
    """The variables that are not set are named, although the AWS files have a whole pair."""
    for name in given:
        monkeypatch.setenv(name, f"value-of-{name}")
    text = message_of()
    assert f"the environment gives {given[0]} without {lacks}. Give {lacks} too" in text


@pytest.mark.parametrize(("given", "lacks"), HALVES)
def test_variable_that_is_empty(monkeypatch: pytest.MonkeyPatch, given: Sequence[str], lacks: str) -> None:
    """An empty variable gives nothing."""
    for name in (KEY, SECRET, TOKEN):
        monkeypatch.setenv(name, f"value-of-{name}" if name in given else "")
    assert f"without {lacks}." in message_of()


@pytest.mark.parametrize(("given", "lacks"), HALVES)
@pytest.mark.parametrize("configured", [False, True])
def test_options(whole_default: Path, given: Sequence[str], lacks: str, configured: bool) -> None:
    """The options of a call, or of the fsspec configuration, that are missing are named."""
    options = {OPTIONS[name]: f"value-of-{name}" for name in given}
    if configured:
        fsspec.config.conf["s3"], options = options, {}
    expected = named(lacks)
    assert f"without {expected}." in message_of(**options)


@pytest.mark.parametrize(("given", "lacks"), HALVES)
def test_arguments_of_the_client(given: Sequence[str], lacks: str) -> None:
    """Keys that the call gives as ``client_kwargs`` are such a pair too."""
    text = message_of(client_kwargs={name.lower(): f"value-of-{name}" for name in given})
    assert named(lacks) in text


@pytest.mark.parametrize(("given", "lacks"), HALVES)
@pytest.mark.parametrize("file", ["credentials", "config"])
@pytest.mark.parametrize("way", ["named", "AWS_PROFILE", "default"])
def test_profile(
    aws_files: Path, monkeypatch: pytest.MonkeyPatch, given: Sequence[str], lacks: str, file: str, way: str
) -> None:
    """The profile, the file and the fields that it lacks are named."""
    name = "default" if way == "default" else "half"
    title = f"profile {name}" if file == "config" and name != "default" else name
    (aws_files / file).write_text(section(title, given))
    if way == "AWS_PROFILE":
        monkeypatch.setenv("AWS_PROFILE", name)
    text = message_of(**({"profile": name} if way == "named" else {}))
    assert f"profile '{name}' in {aws_files / file} gives {given[0].lower()} without {lacks.lower()}." in text


def test_halves_in_two_files(aws_files: Path) -> None:
    """A key in one file and its secret in the other are no pair: botocore reads each file by itself."""
    (aws_files / "credentials").write_text(section("half", [SECRET]))
    (aws_files / "config").write_text(section("profile half", [KEY]))
    assert f"{aws_files / 'credentials'} gives {SECRET.lower()} without" in message_of(profile="half")


def test_profile_of_a_role(aws_files: Path) -> None:
    """Half a pair in the profile by which a role is assumed is reported with that profile."""
    role = "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/trainer\nsource_profile = half\n"
    (aws_files / "config").write_text(role + section("profile half", [KEY]))
    assert f"profile 'half' in {aws_files / 'config'} gives {KEY.lower()} without" in message_of(profile="role")


def test_what_is_not_asked_may_be_half(whole_default: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a pair matters only where it would be used: not behind a call that names its own, nor a whole pair."""
    with (whole_default / "credentials").open("a") as file:
        file.write(section("half", [KEY]))
    (whole_default / "config").write_text(section("default", [KEY]))
    assert fsspec.filesystem("s3").sign("bucket/key")
    monkeypatch.setenv(KEY, "value")
    assert fsspec.filesystem("s3", profile="default").sign("bucket/key")
    assert fsspec.filesystem("s3", key="k", secret="s").sign("bucket/key")
    assert fsspec.filesystem("s3", anon=True).sign("bucket/key")
