"""cszoo checkpoint info: what it prints, what it reads, and its exit status."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest
import safetensors.torch
import torch
from broken import sparse_safetensors
from commands import DONE, FAILED, cszoo, failure
from proxy import fault_proxy, through

from fsspec_csx.checkpoint.api import save
from fsspec_csx.cli import main
from fsspec_csx.manage.info import describe
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

STATE = {"w": torch.ones(20, 30), "b": torch.ones(30, dtype=torch.bfloat16), "v": torch.ones(6), "step": 7, "n": ["a"]}


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """What the verb prints, by what stands before the first colon; a second value of a name is left out."""
    assert main(["checkpoint", "info", *arguments]) == DONE
    lines = [line.partition(":") for line in reversed(capsys.readouterr().out.splitlines())]
    return {name.strip(): text.strip() for name, _, text in lines}


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """What the verb prints as JSON."""
    assert main(["checkpoint", "info", "--json", *arguments]) == DONE
    data: dict[str, object] = json.loads(capsys.readouterr().out)
    return data


def test_torch(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a torch file on any filesystem."""
    path = f"{root}/a #1 ?*[x] %20 é.mdl"
    save(STATE, path)
    save({"decoy": 1}, f"{path}0")
    lines = shown(capsys, path)
    assert lines["Path"] == path
    assert lines["Format"] == "torch"
    assert lines["Written by"].startswith("torch.save, as a zip archive of version 3")
    assert lines["Tensors"] == "3 (636 parameters, 2.4 KiB)"
    assert lines["float32"] == "2 (2.4 KiB)"
    assert lines["bfloat16"] == "1 (60 B)"
    assert lines["Other values"] == "2"
    modified = datetime.fromisoformat(lines["Last modified"])
    assert abs((datetime.now(timezone.utc) - modified).total_seconds()) < 100
    assert ("Endpoint" in lines) == path.startswith("s3:")
    assert ("ETag" in lines) == path.startswith("s3:")


def test_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """-l lists tensors and other values; long ones are cut, and those of a terminal quoted."""
    save({"w": torch.ones(20, 30), "x\ny": 1, "long": "x" * 1000}, tmp_path / "x.mdl")
    for option in ("-l", "--list-objects", "--list_objects"):
        assert main(["checkpoint", "info", option, str(tmp_path / "x.mdl")]) == DONE
        lines = capsys.readouterr().out.splitlines()
        assert lines[-6].split() == ["Tensor", "dtype", "shape", "size"]
        assert lines[-5].split() == ["w", "float32", "(20,", "30)", "2.3", "KiB"]
        assert lines[-2].split() == [r"'x\ny'", "1"]
        assert len(lines[-1]) < 100


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json lists all, and what -l lists only with it."""
    save(STATE, tmp_path / "x.mdl")
    data = report(capsys, str(tmp_path / "x.mdl"))
    wanted = {"format": "torch", "tensors": 3, "parameters": 636, "tensor_bytes": 2484, "values": 2, "profile": None}
    assert wanted.items() <= data.items()
    assert data["size"] == (tmp_path / "x.mdl").stat().st_size
    assert data["dtypes"] == {"float32": {"tensors": 2, "bytes": 2424}, "bfloat16": {"tensors": 1, "bytes": 60}}
    assert "objects" not in data
    objects = report(capsys, "-l", str(tmp_path / "x.mdl"))["objects"]
    assert objects == [
        {"name": "w", "dtype": "float32", "shape": [20, 30], "bytes": 2400},
        {"name": "b", "dtype": "bfloat16", "shape": [30], "bytes": 60},
        {"name": "v", "dtype": "float32", "shape": [6], "bytes": 24},
        {"name": "step", "value": "7"},
        {"name": "n.0", "value": "'a'"},
    ]


def test_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A safetensors file says its metadata, and a file of before torch 1.6 that it is one."""
    path = str(tmp_path / "x")
    safetensors.torch.save_file({"w": torch.ones(3)}, path, {"format": "pt", "by": "me"})
    data = report(capsys, path)
    assert (data["format"], data["written_by"], data["metadata"]) == (
        "safetensors",
        "safetensors",
        {"format": "pt", "by": "me"},
    )
    assert shown(capsys, path)["Metadata"] in ("format: pt", "by: me")
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert "before torch 1.6" in str(report(capsys, path)["written_by"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_other_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sparse, quantized and nested tensors are reported too."""
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    quantized = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    save({"s": torch.eye(3).to_sparse(), "n": nested, "q": quantized}, tmp_path / "x.mdl")
    objects = report(capsys, "-l", str(tmp_path / "x.mdl"))["objects"]
    assert objects == [
        {"name": "s", "dtype": "float32", "shape": [3, 3], "bytes": 36},
        {"name": "n", "dtype": "float32", "shape": [2, -1], "bytes": 20},
        {"name": "q", "dtype": "qint8", "shape": [4], "bytes": 4},
    ]


def test_few_bytes_are_read(server: LocalS3, fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """However large the file, a few short ranges are read."""
    sparse_safetensors(tmp_path / "x", 60 * 2**20, b"1")
    fs.put_file(str(tmp_path / "x"), f"{bucket}/x.safetensors")
    with fault_proxy(server.endpoint_url) as proxy:
        options = through(proxy, server).storage_options
        found = describe(f"s3://{bucket}/x.safetensors", storage_options=options)
        assert found.info.size > 60 * 2**20
        assert len(proxy.made()) < 6
        assert sum(request.sent for request in proxy.made()) < 2 * 2**20


def test_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing or no checkpoint fails with a cause and a remedy."""
    (tmp_path / "text").write_text("text")
    for name, said in (("missing", "No such file"), ("text", "is text")):
        assert main(["checkpoint", "info", str(tmp_path / name)]) == FAILED
        cause, remedy = capsys.readouterr().err.splitlines()
        assert said in cause
        assert remedy


@pytest.mark.slow
def test_as_a_process(environment: LocalS3, bucket: str, aws_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command shows the credentials in use and the endpoint, from the environment or a profile, and no secret."""
    path = f"s3://{bucket}/run/x.mdl"
    save(STATE, path)
    lines = shown(capsys, path)
    assert (lines["Profile"], lines["Endpoint"]) == ("none", environment.endpoint_url)
    identity = environment.identity
    (aws_files / "credentials").write_text(
        f"[work]\naws_access_key_id = {identity.access_key}\naws_secret_access_key = {identity.secret_key}\n"
    )
    done = cszoo("info", path, "--json", "-p", "work")
    assert (done.returncode, done.stderr) == (DONE, "")
    data = json.loads(done.stdout)
    assert (data["profile"], data["endpoint"]) == ("work", environment.endpoint_url)
    assert "'work'" in data["credentials"]
    assert "the environment" in lines["Credentials"]
    for text in (str(lines), done.stdout):
        assert identity.secret_key not in text
        assert identity.access_key not in text
    cause, _ = failure(cszoo("info", f"{path}0"))
    assert f"{path}0" in cause
