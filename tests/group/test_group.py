"""Loads by many processes, which read a checkpoint once for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import group_job
import pytest
import torch
import torch.distributed.checkpoint as dcp
from proxy import FaultProxy, fault_proxy
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

import fsspec_csx
from fsspec_csx import distributed
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3


@pytest.fixture
def proxy(environment: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """What the processes of a job reach the server by."""
    with fault_proxy(environment.endpoint_url) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running


@pytest.fixture
def saved(bucket: str, environment: LocalS3, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """A folder with a checkpoint of each format, and the digests of what they hold."""
    root, state = f"s3://{bucket}/run", group_job.state()
    flat = group_job.flat(state)
    simple = {name: each for name, each in state.items() if name != "kinds"}
    fsspec_csx.save(state, f"{root}/a.mdl")
    fsspec_csx.save(flat, f"{root}/b.safetensors")
    fsspec_csx.save(flat, f"{root}/hf", format="huggingface", max_shard_size="5MB")
    fsspec_csx.save(simple, f"{root}/cerebras", format="cerebras")
    distributed.save(state, f"{root}/dcp")
    dcp.save(simple, storage_writer=FsspecWriter(f"{root}/torch", sync_files=False))
    torch.save(simple, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    fsspec_csx.copy(str(tmp_path / "old.pt"), f"{root}/old.pt")
    held = {"a.mdl": state, "b.safetensors": flat, "hf": flat, "cerebras": simple, "dcp": state}
    held |= {"torch": simple, "old.pt": simple}
    return root, {name: group_job.digest(each) for name, each in held.items()}


@pytest.fixture
def lone(bucket: str, environment: LocalS3) -> str:
    """A folder with one checkpoint, ``a.mdl``."""
    fsspec_csx.save(group_job.state(), f"s3://{bucket}/run/a.mdl")
    return f"s3://{bucket}/run"


def gets(proxy: FaultProxy) -> tuple[int, int]:
    """How many requests read, and how many bytes came, since the last call."""
    made = [request for request in proxy.requests if request.method == "GET"]
    proxy.requests.clear()
    return len(made), sum(request.sent for request in made)


@pytest.mark.slow
def test_formats(
    saved: tuple[str, dict[str, str]], proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes get what was saved, in every format, for the requests and the bytes of one read."""
    root, held = saved
    for name in held:
        monkeypatch.setenv("NAMES", name)
        proxy.requests.clear()
        assert group_job.digest(fsspec_csx.load(f"{root}/{name}")) == held[name]
        alone = gets(proxy)
        assert group_job.run("names", root, tmp_path) == [[f"{name} {held[name]}"]] * 2
        many = gets(proxy)
        if name == "cerebras":  # a request for a whole large object ends when the other requests have the rest
            assert max(many[0] / alone[0], many[1] / alone[1]) <= 1.2, (alone, many)
        else:
            assert many[0] <= alone[0] + 4, (name, alone, many)  # what is left of a share is a request of its own
            assert many[1] == alone[1], (name, alone, many)


@pytest.mark.slow
def test_four_processes(
    saved: tuple[str, dict[str, str]], proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes read no more than one."""
    root, held = saved
    monkeypatch.setenv("NAMES", ",".join(held))
    proxy.requests.clear()
    assert {name: group_job.digest(fsspec_csx.load(f"{root}/{name}")) for name in held} == held
    alone = gets(proxy)
    assert group_job.run("names", root, tmp_path, size=4) == [[f"{name} {held[name]}" for name in held]] * 4
    assert gets(proxy)[1] <= 1.1 * alone[1]


def test_variants(lone: str, tmp_path: Path) -> None:
    """Parts, tensors that are there, and other devices; tied tensors stay so."""
    state = group_job.state()
    part = {"kinds": state["kinds"], "optimizer": {"exp_avg": state["optimizer"]["exp_avg"]}}
    expected = ["tied True", f"keys {group_job.digest(part)}", f"chosen {group_job.digest({'many': state['many']})}"]
    expected += [f"into {group_job.digest(state)}", "meta meta", f"code {group_job.digest(state)}"]
    assert group_job.run("variants", lone, tmp_path) == [expected] * 2


@pytest.mark.slow
def test_errors(lone: str, fs: CSXFileSystem, tmp_path: Path) -> None:
    """What fails in one process fails in all, by the same error; the next load works."""
    data = bytearray(fs.cat_file(f"{lone}/a.mdl"))
    data[len(data) // 4] ^= 1
    fs.pipe_file(f"{lone}/damaged.mdl", bytes(data))
    printed = group_job.run("errors", lone, tmp_path)
    for first, second in zip(*printed, strict=True):
        assert first.split()[0] == second.split()[0]
    first, second = ({line.partition(": ")[0]: line.partition(": ")[2] for line in each} for each in printed)
    assert {name: text.split()[0] for name, text in first.items()} == {
        **dict.fromkeys(["paths", "keys", "functions", "local"], "ValueError"),
        "no path": "CheckpointPathError",
        "missing": "ObjectNotFoundError",
        "damaged": "InvalidCheckpointError",
        "into": "MismatchError",
        "credentials": "RejectedCredentialsError",
        "replaced": "OSError",
    }
    assert second.pop("replaced").startswith("FileExpired")
    assert "FileExpired" in first.pop("replaced")
    assert first == second
    assert "b.mdl" in first["paths"]
    assert "'many.1', 'step'" in first["keys"]
    assert "model.large" in first["damaged"]


@pytest.mark.slow
def test_lost_process(lone: str, tmp_path: Path) -> None:
    """A process that is killed while it reads is an error of the others."""
    (found,), others = group_job.run("killed", lone, tmp_path, killed=1)
    assert found.startswith("LostProcessError Another process of this job has ended")
    assert not others


@pytest.mark.slow
def test_sharded(
    saved: tuple[str, dict[str, str]], proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """distributed.load reads once what all processes need."""
    root, held = saved
    for name in ("dcp", "hf", "torch"):
        monkeypatch.setenv("NAMES", name)
        monkeypatch.setenv("COUNTED", "1")
        proxy.requests.clear()
        assert group_job.run("sharded", root, tmp_path, size=1) == [[f"{name} {held[name]}"]]
        alone = gets(proxy)
        assert group_job.run("sharded", root, tmp_path) == [[f"{name} {held[name]}"]] * 2
        assert gets(proxy)[1] <= 1.01 * alone[1]
    monkeypatch.delenv("COUNTED")
    monkeypatch.setenv("NAMES", "dcp,hf")
    printed, state = group_job.run_by_torchrun("sharded", root), group_job.state()
    for each, kinds in zip(printed, (["bool"], ["bool", "int8"]), strict=True):
        tensors = [state["model"]["large"], state["optimizer"]["exp_avg"], *(state["kinds"][kind] for kind in kinds)]
        part = f"part {group_job.digest(tensors)}"
        assert each == [
            line for name in ("dcp", "hf") for line in (f"{name} {held[name]}", part, f"strides {held[name]}")
        ]
