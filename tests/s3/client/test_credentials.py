"""The credentials of a request: the six rules in order, and the error if none finds credentials."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import fsspec
import fsspec.config
import pytest
from aiobotocore.session import AioSession
from botocore.session import Session

from fsspec_csx import backends
from fsspec_csx.errors import IncompleteCredentialsError, NoCredentialsError, UnknownProfileError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3


def signer(**options: object) -> str:
    """The access key that signs for a filesystem with these options."""
    query = parse_qs(urlsplit(fsspec.filesystem("s3", **options).sign("bucket/key")).query)
    named = query.get("AWSAccessKeyId") or query["X-Amz-Credential"]
    return named[0].split("/")[0]


def write_profile(folder: Path, name: str, **settings: str) -> None:
    """Add a profile to the AWS credentials file."""
    with (folder / "credentials").open("a") as file:
        file.write(f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))


def write_keys(folder: Path, name: str) -> None:
    """Add a profile whose access key is the profile's name."""
    write_profile(folder, name, aws_access_key_id=f"key-of-{name}", aws_secret_access_key=f"secret-of-{name}")


@pytest.fixture
def profiles(aws_files: Path) -> Path:
    """The AWS files with five profiles."""
    for name in ("default", "called", "set", "configured", "from-env"):
        write_keys(aws_files, name)
    return aws_files


def test_rules_in_order(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule wins over all that come after it."""
    assert signer() == "key-of-default"
    monkeypatch.setenv("AWS_PROFILE", "from-env")
    assert signer() == "key-of-from-env"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-environment")
    assert signer() == "key-of-environment"
    fsspec.config.set_conf_env(fsspec.config.conf, {"FSSPEC_S3_PROFILE": "configured"})
    assert signer() == "key-of-configured"
    backends.csx.storage.s3.profile = "set"
    assert signer() == "key-of-set"
    assert signer(profile="called") == "key-of-called"
    assert signer(profile_name="called") == "key-of-called"
    assert signer(profile="called", key="key-given", secret="secret-given") == "key-given"


def test_call_wins_over_configured_keys(profiles: Path) -> None:
    """A profile that the call or the setting names is not overruled by keys of the fsspec configuration."""
    fsspec.config.conf["s3"] = {"key": "key-configured", "secret": "secret-configured"}
    assert signer() == "key-configured"
    assert signer(profile="called") == "key-of-called"
    backends.csx.storage.s3.profile = "set"
    assert signer() == "key-of-set"


def test_session_of_the_call_is_used(profiles: Path) -> None:
    """A session that the call passes in signs, whatever the setting says."""
    backends.csx.storage.s3.profile = "set"
    assert signer(session=AioSession(profile="called"), skip_instance_cache=True) == "key-of-called"


def test_anonymous_call_needs_no_credentials() -> None:
    """anon=True signs nothing, and no other rule applies."""
    backends.csx.storage.s3.profile = "nowhere"
    assert "AWSAccessKeyId" not in fsspec.filesystem("s3", anon=True).sign("bucket/key")


def test_change_takes_effect_at_the_next_open(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting, the environment and the AWS files are read again, in every thread; open files stay as they are."""
    before = fsspec.filesystem("s3")
    assert signer() == "key-of-default"
    seen: list[str] = []

    def ask() -> None:
        seen.append(signer())

    def in_thread() -> str:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return seen[-1]

    backends.csx.storage.s3.profile = "set"
    assert signer() == in_thread() == "key-of-set"
    backends.csx.storage.s3.profile = None
    monkeypatch.setenv("AWS_PROFILE", "from-env")
    assert signer() == in_thread() == "key-of-from-env"
    monkeypatch.delenv("AWS_PROFILE")
    (profiles / "credentials").write_text("")
    write_keys(profiles, "default")
    write_keys(profiles, "rotated")
    (profiles / "credentials").write_text((profiles / "credentials").read_text().replace("key-of-default", "key-new"))
    assert signer() == in_thread() == "key-new"
    assert "key-of-default" in before.sign("bucket/key")


def test_threads_with_profiles_of_their_own_do_not_mix(profiles: Path) -> None:
    """Each thread that names its own profile signs with it, however many there are."""
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(20):
            got = signer(profile=name)
            if got != f"key-of-{name}":
                wrong.append(got)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("called", "set", "configured") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_instance_never_serves_another_environment(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem made under one environment and first used under another is not handed out for the former."""
    made = fsspec.filesystem("s3")
    monkeypatch.setenv("AWS_PROFILE", "from-env")
    made.sign("bucket/key")
    monkeypatch.delenv("AWS_PROFILE")
    assert signer() == "key-of-default"


def test_same_arguments_share_an_instance(profiles: Path) -> None:
    """As long as nothing changes there is one filesystem, and the two names of the profile are one argument."""
    assert fsspec.filesystem("s3", profile="set") is fsspec.filesystem("s3", profile_name="set")
    assert CSXFileSystem(True) is CSXFileSystem(anon=True)


def test_instances_of_former_keys_are_freed(server: LocalS3, new_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that names other keys in each call keeps neither their filesystems nor their threads."""
    monkeypatch.setattr("fsspec_csx.s3.filesystem._CACHED", 3)
    made, options = list[weakref.ref[CSXFileSystem]](), server.storage_options()
    held = fsspec.filesystem("s3", **options)
    held.mkdir(new_bucket)

    def use(number: int) -> None:
        with suppress(PermissionError):
            fs = fsspec.filesystem("s3", **{**options, "key": f"key-{number}"})
            made.append(weakref.ref(fs))
            fs.pipe_file(f"{new_bucket}/x", b"data")

    def kept() -> int:
        gc.collect()
        return sum(each() is not None for each in made)

    for number in range(4):
        use(number)
    assert kept() == 4  # they were used just now
    monkeypatch.setattr("fsspec_csx.s3.filesystem._UNUSED_SECONDS", 0.0)
    for number in range(4, 8):
        use(number)
    assert kept() <= 4
    assert fsspec.filesystem("s3", **options) is fsspec.filesystem("s3", **options)
    held.pipe_file(f"{new_bucket}/x", b"data")


def test_pickle_keeps_the_choice_but_no_secret(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle carries the profile's name, not what it gives, and is the same filesystem where it is loaded."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-the-environment")
    backends.csx.storage.s3.profile = "set"
    made = fsspec.filesystem("s3")
    made.sign("bucket/key")
    pickled = pickle.dumps(made)
    assert b"secret" not in pickled.replace(b"aws_secret", b"")
    assert b"token-of" not in pickled
    backends.csx.storage.s3.profile = None
    assert "key-of-set" in pickle.loads(pickled).sign("bucket/key")


def test_credential_process(aws_files: Path) -> None:
    """A profile may name a program that prints the credentials."""
    printed = '{"Version": 1, "AccessKeyId": "key-of-process", "SecretAccessKey": "secret-of-process"}'
    script = aws_files / "print_keys.py"
    script.write_text(f"print('{printed}')")
    (aws_files / "config").write_text(f"[profile work]\ncredential_process = {sys.executable} {script}\n")
    assert signer(profile="work") == "key-of-process"


@pytest.mark.parametrize("where", ["endpoint", "services", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_endpoint_follows_botocore(
    server: LocalS3, aws_files: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The endpoint comes from the profile, its services section, or the environment, as botocore has it."""
    key, secret = server.identity.access_key, server.identity.secret_key
    url = f"endpoint_url = {server.endpoint_url}\n"
    config = f"[profile work]\nregion = us-east-1\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    if where == "endpoint":
        config += url
    elif where == "services":
        config += f"services = local\n[services local]\ns3 =\n  {url}"
    else:
        monkeypatch.setenv(where, server.endpoint_url)
    (aws_files / "config").write_text(config)
    fs = fsspec.filesystem("s3", profile="work")
    assert isinstance(fs.ls(""), list)
    assert fs.sign("bucket/key").startswith(server.endpoint_url)


def test_region_follows_botocore(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The region comes from the profile or the environment."""
    (profiles / "config").write_text("[profile set]\nregion = eu-west-3\n")
    assert "eu-west-3" in fsspec.filesystem("s3", profile="set").sign("bucket/key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    assert "ap-south-1" in fsspec.filesystem("s3", profile="called").sign("bucket/key")


# -- no credentials, or not whole ones ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rb", "wb"])
def test_no_credentials_lists_what_was_tried(mode: str) -> None:
    """Without credentials the first use fails, before data is written, and says the rules in order and the remedy."""
    with pytest.raises(NoCredentialsError) as caught, fsspec.open("s3://bucket/key", mode):
        pytest.fail("opened without credentials")
    text = str(caught.value)
    places = ["the call", "backends.csx.storage.s3.profile", "fsspec configuration", "AWS_ACCESS_KEY_ID", "[default]"]
    assert [text.index(place) for place in places] == sorted(text.index(place) for place in places)
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.remedy
    assert "backends.csx.storage.s3.profile" in caught.value.remedy
    assert isinstance(caught.value, PermissionError)


def test_credentials_that_appear_later_are_found(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is not remembered: once the credentials are there, the same call works."""
    keys = (profiles / "credentials").read_text()
    (profiles / "credentials").write_text("")
    fs = fsspec.filesystem("s3")
    with pytest.raises(NoCredentialsError):
        fs.sign("bucket/key")
    (profiles / "credentials").write_text(keys)
    assert "key-of-default" in fs.sign("bucket/key")


@pytest.mark.parametrize("names", ["call", "setting", "environment"])
def test_unknown_profile_names_what_is_there(profiles: Path, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """An unknown profile is named with the files that were read and the profiles in them."""
    options = {}
    if names == "call":
        options["profile"] = "nowhere"
    elif names == "setting":
        backends.csx.storage.s3.profile = "nowhere"
    else:
        monkeypatch.setenv("AWS_PROFILE", "nowhere")
    with pytest.raises(UnknownProfileError) as caught, fsspec.open("s3://bucket/key", "wb", **options):
        pytest.fail("opened with an unknown profile")
    text = str(caught.value)
    for wanted in ("'nowhere'", str(profiles / "config"), str(profiles / "credentials"), "called, configured, default"):
        assert wanted in text


@pytest.mark.parametrize(
    ("options", "lacks"), [({"key": "k"}, "secret"), ({"secret": "s"}, "key"), ({"token": "t"}, "key and secret")]
)
def test_half_a_pair_in_the_call(options: dict[str, str], lacks: str) -> None:
    """A key without its secret, or the other way round, is an error that says which half is missing."""
    with pytest.raises(IncompleteCredentialsError, match=f"without the {lacks}"):
        fsspec.filesystem("s3", **options)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_half_a_pair_in_the_environment(profiles: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Half a pair in the environment is an error, although the AWS files have a whole one."""
    monkeypatch.setenv(name, "something")
    with pytest.raises(IncompleteCredentialsError):
        fsspec.filesystem("s3").sign("bucket/key")


@pytest.mark.parametrize("name", ["aws_access_key_id", "aws_secret_access_key"])
def test_half_a_pair_in_a_profile(aws_files: Path, name: str) -> None:
    """Half a pair in a profile is an error."""
    write_profile(aws_files, "half", **{name: "something"})
    with pytest.raises(IncompleteCredentialsError):
        fsspec.filesystem("s3", profile="half").sign("bucket/key")


def test_profile_without_credentials(aws_files: Path) -> None:
    """A profile that gives no credentials is named, although the environment has some."""
    (aws_files / "config").write_text("[profile empty]\nregion = us-east-1\n")
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = "key", "secret"
    try:
        with pytest.raises(NoCredentialsError, match="'empty'"):
            fsspec.filesystem("s3", profile="empty").sign("bucket/key")
    finally:
        del os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]


def test_same_files_as_botocore(aws_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that an error names are those that botocore reads."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(aws_files / "elsewhere"))
    with pytest.raises(UnknownProfileError) as caught:
        fsspec.filesystem("s3", profile="nowhere").sign("bucket/key")
    for variable in ("config_file", "credentials_file"):
        assert str(Path(Session().get_config_variable(variable)).expanduser()) in str(caught.value)
