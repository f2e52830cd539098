"""cszoo checkpoint convert: what it writes, what it prints and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
import torch
from checkpoints import names, saved
from commands import DONE, FAILED, USAGE, cszoo, failure

from fsspec_csx import load, save
from fsspec_csx.cli import main
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

STATE = {"model": {"w": torch.arange(6.0), "n": torch.arange(3)}, "step": 7}


def run(*arguments: str) -> int:
    """The exit status of the verb, in this process."""
    return main(["checkpoint", "convert", *arguments])


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A checkpoint in a local file."""
    torch.save(STATE, tmp_path / "model.mdl")
    return str(tmp_path / "model.mdl")


def test_from_s3_to_s3(bucket: str, environment: LocalS3) -> None:
    """A part of a checkpoint is cast on its way from S3 to S3, in a process of its own."""
    save(STATE, f"s3://{bucket}/run/a b#1.mdl")
    done = cszoo(
        "convert", f"s3://{bucket}/run/a b#1.mdl", f"s3://{bucket}/out/", "--dtype", "bfloat16", "--keys", "model"
    )
    target = f"s3://{bucket}/out/a b#1.mdl"
    assert done.returncode == DONE, done
    assert done.stderr == ""
    size = fsspec.filesystem("s3").size(f"{bucket}/out/a b#1.mdl")
    report = f"Converted s3://{bucket}/run/a b#1.mdl to {target} (2 tensors, 1 of them cast, {size / 1024:.1f} KiB)\n"
    assert done.stdout == report
    found = load(target)
    assert list(found) == ["model"]
    assert torch.equal(found["model"]["w"], STATE["model"]["w"].bfloat16())  # type: ignore[index]
    assert torch.equal(found["model"]["n"], STATE["model"]["n"])  # type: ignore[index]


def test_huggingface(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of shards of a size; the index can be the target too, and a size that is none is an error."""
    options = ("--format", "huggingface", "--keys", "model", "--max-shard-size")
    assert run(source, f"{tmp_path}/out", *options, "24B") == DONE
    assert "2 tensors" in capsys.readouterr().out
    assert len([*(tmp_path / "out").glob("model-*.safetensors")]) == 2
    assert torch.equal(load(tmp_path / "out")["model.w"], STATE["model"]["w"])  # type: ignore[index]
    assert run(source, f"{tmp_path}/out", *options, "24B") == FAILED
    assert run(source, f"{tmp_path}/other/x.safetensors.index.json", "--keys", "model") == DONE
    assert [*load(tmp_path / "other")] == ["model.w", "model.n"]
    assert run(source, f"{tmp_path}/third", *options, "many") == FAILED
    assert "max_shard_size is 'many'" in capsys.readouterr().err
    assert run(source, f"{tmp_path}/third", "--max-shard-size", "1GB") == FAILED
    assert "max_shard_size is for the format huggingface" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_what_is_reported(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left out, copied or no longer finite is reported by name."""
    tied = torch.tensor([1.0, 1e9])
    torch.save({"a": tied, "b": tied, "step": 1, "more": list(range(30))}, source)
    target = f"{tmp_path}/x.safetensors"
    assert run(source, target, "--dtype", "float16", "--drop-values") == DONE
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"Converted {source} to {target} (2 tensors, 2 of them cast, {Path(target).stat().st_size} B)"
    numbers = ", ".join(f"more.{number}" for number in range(19))
    assert lines == [
        f"Omitted, not tensors: step, {numbers} and 11 more (see --json)",
        "Written as copies, shared memory with others: b",
        "Overflowed to infinity in the new dtype: a, b",
    ]
    assert run(source, target, "-fq", "--drop-values") == DONE
    assert capsys.readouterr().out == ""


def test_json(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json lists everything in one document."""
    target = tmp_path / "x.safetensors"
    assert run(source, str(target), "--json", "--drop-values", "--dtype", "bfloat16") == DONE
    assert json.loads(capsys.readouterr().out) == {
        "path": str(target),
        "format": "safetensors",
        "size": target.stat().st_size,
        "tensors": 2,
        "cast": 1,
        "dropped": ["step"],
        "separated": [],
        "overflowed": [],
    }


def test_folders_and_formats(source: str, tmp_path: Path) -> None:
    """A folder takes the source's name, and --format says what is written where the name does not."""
    (tmp_path / "out").mkdir()
    assert run(source, str(tmp_path / "out"), "--format", "safetensors", "--keys", "model.w", "model.n") == DONE
    assert list(load(tmp_path / "out" / "model.safetensors")) == ["model.n", "model.w"]
    assert run(str(tmp_path / "out" / "model.safetensors"), str(tmp_path / "x.bin"), "--keys", "modle") == FAILED
    assert run(str(tmp_path / "out" / "model.safetensors"), str(tmp_path / "x.bin")) == DONE
    assert torch.equal(load(tmp_path / "x.bin")["model.w"], STATE["model"]["w"])  # type: ignore[index]
    assert names(str(tmp_path)) == ["home", "model.mdl", "out", "x.bin"]


def test_existing_target(source: str, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is at the target stays unless --force."""
    save([1], f"{root}/x.mdl")
    assert run(source, f"{root}/x.mdl") == FAILED
    assert capsys.readouterr().err.splitlines() == [
        f"cszoo: {root}/x.mdl exists already.",
        "Choose another name, or replace it with --force or overwrite=True.",
    ]
    assert load(f"{root}/x.mdl") == [1]
    assert run(source, f"{root}/x.mdl", "--force") == DONE
    assert load(f"{root}/x.mdl")["step"] == 7


@pytest.mark.parametrize(
    "arguments", [["a"], ["a", "b", "--dtype", "int8"], ["a", "b", "--format", "onnx"], ["a", "b", "--keys"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    """Wrong usage has an exit status of its own."""
    with pytest.raises(SystemExit) as left:
        run(*arguments)
    assert left.value.code == USAGE


def test_failures(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure says what is wrong and what to do, on a line each, and leaves nothing behind."""
    damaged = bytearray(saved({"w": torch.arange(300.0)}))
    damaged[damaged.index(torch.arange(300.0).numpy().tobytes()) + 9] ^= 1
    (tmp_path / "damaged.mdl").write_bytes(damaged)
    (tmp_path / "text.mdl").write_text("hello")
    for arguments, cause, remedy in (
        (["missing.mdl", "x.mdl"], "missing.mdl: No such file or directory.", "Check the path."),
        (["text.mdl", "x.mdl"], "text.mdl is text (first bytes 'hello').", "Check that the path is that"),
        (["damaged.mdl", "x.mdl"], "damaged.mdl is damaged: the checksum of 'w' is wrong.", "Save it again"),
        (["model.mdl", "x.safetensors"], "only tensors, and these entries are not: 'step'.", "Leave them out ("),
        (["model.mdl", "x.mdl", "--keys", "modle"], "has no 'modle'.", "The nearest names are 'model'"),
        (["model.mdl", "text.mdl/x.mdl"], "Not a directory.", "Check the path: one of its folders"),
        (["model.mdl", "s3://bucket"], "lacks the object path.", "Give bucket and object path"),
    ):
        names_only = [each if "//" in each or each.startswith("-") else str(tmp_path / each) for each in arguments[:2]]
        assert run(*names_only, *arguments[2:]) == FAILED
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith("cszoo: ")
        assert first.endswith(cause)
        assert second.startswith(remedy)
    assert names(str(tmp_path)) == ["damaged.mdl", "home", "model.mdl", "text.mdl"]


@pytest.mark.slow
def test_failures_of_s3(source: str, bucket: str, server: LocalS3, new_bucket: str) -> None:
    """S3's refusals are reported in processes of their own: a user who may only read, and a wrong secret."""
    save(STATE, f"s3://{bucket}/x.mdl", storage_options=server.storage_options())
    reader = server.environment(server.identities[1])
    cause, remedy = failure(cszoo("convert", f"s3://{bucket}/x.mdl", f"s3://{bucket}/y.mdl", environment=reader))
    assert bucket in cause
    assert remedy
    wrong = {**server.environment(), "AWS_SECRET_ACCESS_KEY": "wrong" * 8}
    cause, _ = failure(cszoo("convert", source, f"s3://{bucket}/y.mdl", environment=wrong))
    assert "wrongwrong" not in cause
    assert names_on(server, bucket) == ["x.mdl"]


def names_on(server: LocalS3, bucket: str) -> list[str]:
    """The objects in a bucket."""
    fs = fsspec.filesystem("s3", **server.storage_options(), use_listings_cache=False)
    assert isinstance(fs, CSXFileSystem)
    return sorted(name.rpartition("/")[2] for name in fs.find(bucket))
