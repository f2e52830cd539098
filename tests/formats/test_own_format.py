"""A folder and a row add a format whose checkpoints are folders, for every verb."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import fsspec
import pytest
import torch

import fsspec_csx
from fsspec_csx import formats, load
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import registry
from fsspec_csx.manage.copy import copy
from fsspec_csx.manage.delete import delete, targets
from fsspec_csx.manage.gc import clear, leftovers
from fsspec_csx.manage.list import check_complete, checkpoints
from fsspec_csx.manage.verify import verify

STATE = {"a": torch.arange(3.0), "b": torch.arange(5.0)}
FOLDERS = ("cerebras", "dcp", "huggingface")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The small format in ``own_format/``, as a folder of ``formats/`` with a row."""
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(Path(__file__).parent / "own_format")])
    monkeypatch.setattr(registry, "_ROWS", {"tiny": registry._Row("tiny"), **registry._ROWS})
    yield
    registry.get_format.cache_clear()
    registry.get_layout.cache_clear()


def write(path: str) -> None:
    """Write a checkpoint of the small format."""
    fs, inner = fsspec.url_to_fs(path)
    for name, tensor in STATE.items():
        fs.pipe_file(f"{inner}/{name}.tiny", tensor.numpy().tobytes())
    fs.pipe_file(f"{inner}/tiny.json", json.dumps({f"{name}.tiny": len(each) for name, each in STATE.items()}).encode())


def names(path: str) -> list[str]:
    """The names of the files in a folder."""
    fs, inner = fsspec.url_to_fs(path)
    fs.invalidate_cache()
    return sorted(each.rpartition("/")[2] for each in fs.find(inner))


@pytest.mark.usefixtures("tiny")
def test_folder_format(root: str) -> None:
    """A checkpoint of the small format is loaded, listed, verified, copied, cleaned and deleted."""
    one, other = f"{root}/run/step_1", f"{root}/run/step_2"
    fs, inner = fsspec.url_to_fs(one)
    fs.makedirs(inner, exist_ok=True)
    write(one)
    assert all(torch.equal(value, load(one)[name]) for name, value in STATE.items())
    assert verify(one).damage == ()
    copy(one, other)
    assert names(other) == names(one) == ["a.tiny", "b.tiny", "tiny.json"]
    assert [(each.path, each.step, each.files) for each in checkpoints(f"{root}/run")] == [(one, 1, 3), (other, 2, 3)]
    check_complete(other)
    with pytest.raises(FileExistsError):
        copy(one, other)

    fs.pipe_file(f"{inner}/left.tiny", b"1234")
    fs.makedirs(f"{inner}_lone", exist_ok=True)
    fs.pipe_file(f"{inner}_lone/left.tiny", b"1234")
    found = leftovers(f"{root}/run", older_than=timedelta(0))
    assert [(each.kind, each.path, len(each.contents)) for each in found] == [
        ("shards", one, 1),
        ("shards", f"{one}_lone", 1),
    ]
    assert clear(found) == {}
    assert names(one) == names(other)

    fs.pipe_file(f"{inner}/a.tiny", b"1234")
    assert verify(one).damage == ("a.tiny has a wrong size",)
    fs.rm_file(f"{inner}/a.tiny")
    with pytest.raises(InvalidCheckpointError, match=r"lacks a\.tiny, which tiny\.json names"):
        check_complete(one)
    assert delete(targets([one, other])) == {}
    assert checkpoints(f"{root}/run") == []


def test_verbs_name_no_format() -> None:
    """The verbs learn from the registry what a folder holds; only a comparison of values knows a format's classes."""
    for path in (Path(fsspec_csx.__file__).parent / "manage").glob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        named = {part for node in imports for part in (node.module or "").split(".")[2:3]}
        assert named.isdisjoint(FOLDERS) or path.stem == "diff_entries", path
