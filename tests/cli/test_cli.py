"""cszoo: its effects, output and exit status."""

from __future__ import annotations

import subprocess
from pathlib import Path

import fsspec
import pytest
import torch
from forked import python

from fsspec_csx import load, save
from fsspec_csx.cli import main
from fsspec_csx.testing import LocalS3

DONE, USAGE, FAILED = 0, 2, 3


@pytest.fixture
def source(root: str) -> str:
    """A checkpoint in a folder of each kind of filesystem."""
    save({"x": torch.arange(1000)}, f"{root}/model.mdl")
    return f"{root}/model.mdl"


def test_copy_down_and_up(source: str, root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy is the same, byte for byte, and a target that ends in a slash or is a folder takes the source's name."""
    folder = tmp_path / "down"
    folder.mkdir()
    assert main(["checkpoint", "copy", source, str(folder)]) == DONE
    assert capsys.readouterr().out == f"Copied checkpoint from {source} to {folder}/model.mdl\n"
    assert main(["checkpoint", "copy", str(folder / "model.mdl"), f"{root}/up/", "--quiet"]) == DONE
    assert capsys.readouterr().out == ""
    with fsspec.open(f"{root}/up/model.mdl", "rb") as file:
        assert file.read() == (folder / "model.mdl").read_bytes()


def test_existing_target_is_kept(source: str, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is at the target stays unless --force."""
    save([1], f"{root}/other.mdl")
    assert main(["checkpoint", "copy", source, f"{root}/other.mdl"]) == FAILED
    assert "exists already" in capsys.readouterr().err
    assert load(f"{root}/other.mdl") == [1]
    assert main(["checkpoint", "copy", source, f"{root}/other.mdl", "--force"]) == DONE
    assert torch.equal(load(f"{root}/other.mdl")["x"], torch.arange(1000))


@pytest.mark.parametrize("arguments", [[], ["checkpoint"], ["checkpoint", "copy"], ["checkpoint", "copi", "a", "b"]])
def test_wrong_usage(arguments: list[str]) -> None:
    """Wrong usage has an exit status of its own."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == USAGE


def test_failures_are_two_sentences(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A failure prints cause and remedy and no traceback."""
    (tmp_path / "x").write_bytes(b"x")
    for source in (str(tmp_path / "missing"), "s3://bucket", "s3://bucket/key", "s3:/bucket/key"):
        assert main(["checkpoint", "copy", source, str(tmp_path / "y")]) == FAILED
        error = capsys.readouterr().err
        assert error.startswith("cszoo: ")
        assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "x"]


def test_profile_and_endpoint(server: LocalS3, aws_files: Path, tmp_path: Path, new_bucket: str) -> None:
    """-p and --endpoint-url choose the credentials and the server; in a separate process, through python -m."""
    identity = server.identity
    (aws_files / "credentials").write_text(
        f"[work]\naws_access_key_id = {identity.access_key}\naws_secret_access_key = {identity.secret_key}\n"
    )
    (tmp_path / "x.mdl").write_bytes(b"data")
    command = [*python(), "-m", "fsspec_csx", "checkpoint", "copy", "-p", "work"]
    command += ["--endpoint-url", server.endpoint_url, str(tmp_path / "x.mdl"), f"s3://{new_bucket}/run/"]
    subprocess.run(command, check=True, timeout=100)
    assert fsspec.filesystem("s3", **server.storage_options()).cat_file(f"{new_bucket}/run/x.mdl") == b"data"
