"""Verbs on a folder that is a checkpoint leave the checkpoints in the folders below it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cerebras import changed
from commands import run
from fsspec.callbacks import Callback
from proxy import Fault, FaultProxy
from roots import left

from fsspec_csx import copy, distributed, load, move, save
from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.cerebras.metadata import NAME, decoded, encoded, split_owned
from fsspec_csx.manage.delete import delete, targets
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.folder_copy import CheckpointFolder, FolderCopy
from fsspec_csx.manage.info import describe
from fsspec_csx.manage.list import checkpoints
from fsspec_csx.s3.filesystem import CSXFileSystem

pytestmark = pytest.mark.usefixtures("environment")


def state(step: int) -> dict[str, Any]:
    """A state dict."""
    return {"w": torch.arange(4.0) + step, "n": torch.full((3,), float(step))}


FORMATS: dict[str, Callable[[int, str], Any]] = {
    "cerebras": lambda step, path: save(state(step), path, format="cerebras"),
    "distributed": lambda step, path: distributed.save(state(step), path),  # type: ignore[arg-type]
    "huggingface": lambda step, path: save(state(step), path, format="huggingface"),
    "torch": lambda step, path: save(state(step), path),
}
FOLDERS = [*FORMATS][:-1]


def is_saved(path: str, step: int) -> bool:
    """Whether there is the checkpoint of a step, with all of its values."""
    found = load(path)
    return all(torch.equal(value, found[name]) for name, value in state(step).items())


def filled(root: str, outer: str) -> list[str]:
    """Save a checkpoint in a folder, and one of each format below it; returns their paths."""
    FORMATS[outer](1, f"{root}/step_1")
    below = [f"{root}/step_1/deep/{name}/step_2" for name in FORMATS]
    for path, write in zip(below, FORMATS.values(), strict=True):
        write(2, path)
    return below


@pytest.mark.parametrize("outer", FOLDERS)
def test_checkpoints_below_stay(bucket: str, outer: str) -> None:
    """They stay when the one above is replaced, by each way, and when it is deleted, or pruned."""
    root = f"s3://{bucket}/run"
    below = filled(root, outer)
    FORMATS[outer](3, f"{root}/step_1")
    assert is_saved(f"{root}/step_1", 3)
    FORMATS[outer](4, f"{root}/other")
    copy(f"{root}/other", f"{root}/step_1", overwrite=True)
    assert is_saved(f"{root}/step_1", 4)
    FORMATS["torch"](5, f"{root}/step_5.pt")
    assert run("convert", "--force", "--format", outer, f"{root}/step_5.pt", f"{root}/step_1") == 0
    assert is_saved(f"{root}/step_1", 5)
    assert all(is_saved(path, 2) for path in below)
    assert run("delete", "--yes", f"{root}/step_1") == 0
    assert all(is_saved(path, 2) for path in below)
    assert all(name.startswith("deep/") for name in left(f"{root}/step_1"))
    assert run("delete", "--yes", *below, f"{root}/other", f"{root}/step_5.pt") == 0
    below = filled(root, outer)
    FORMATS[outer](6, f"{root}/step_6")
    assert run("prune", "--keep", "1", "--yes", root) == 0
    assert all(is_saved(path, 2) for path in below)
    assert all(name.startswith("deep/") for name in left(f"{root}/step_1"))


@pytest.mark.slow
@pytest.mark.parametrize("other", FOLDERS[1:])
def test_replaced_by_another_format(bucket: str, other: str) -> None:
    """They stay when a Cerebras checkpoint is replaced by a copy of another format, which leaves nothing of it."""
    root = f"s3://{bucket}/run"
    below = filled(root, "cerebras")
    FORMATS[other](3, f"{root}/other")
    copy(f"{root}/other", f"{root}/step_1", overwrite=True)
    assert is_saved(f"{root}/step_1", 3)
    assert all(is_saved(path, 2) for path in below)
    assert [name for name in left(f"{root}/step_1") if not name.startswith("deep/")] == left(f"{root}/other")


def test_cerebras_checkpoints_alone_are_moved(bucket: str) -> None:
    """A copy and a move of a Cerebras checkpoint take its own objects, which info measures, and list finds the rest."""
    root = f"s3://{bucket}/run"
    below = filled(root, "cerebras")
    names = {NAME, "w", "n"}
    copy(f"{root}/step_1", f"{root}/copy")
    move(f"{root}/step_1", f"{root}/moved")
    assert {*left(f"{root}/copy")} == {*left(f"{root}/moved")} == names
    assert is_saved(f"{root}/copy", 1)
    assert is_saved(f"{root}/moved", 1)
    assert all(is_saved(path, 2) for path in below)
    move(f"{root}/moved", f"{root}/step_1")
    assert describe(f"{root}/step_1").info.size == describe(f"{root}/copy").info.size
    folders = {path for path in below if "torch" not in path}  # a file there may be an object of the Cerebras one
    assert {each.path for each in checkpoints(root, recursive=True)} == {*folders, f"{root}/step_1", f"{root}/copy"}


@pytest.mark.slow
@pytest.mark.parametrize("outer", FOLDERS[1:])
def test_other_folders_are_moved_whole(bucket: str, outer: str) -> None:
    """A folder of shards is moved with all that lies below it, and nothing is lost."""
    root = f"s3://{bucket}/run"
    below = filled(root, outer)
    move(f"{root}/step_1", f"{root}/moved")
    assert is_saved(f"{root}/moved", 1)
    assert all(is_saved(path.replace("step_1", "moved"), 2) for path in below)
    assert left(f"{root}/step_1") == []


def test_files_in_the_folder_stay(fs: CSXFileSystem, bucket: str) -> None:
    """A file checkpoint, or any other file, that lies beside the objects of a Cerebras checkpoint is not of it."""
    root = f"s3://{bucket}/run"
    FORMATS["cerebras"](1, root)
    FORMATS["torch"](2, f"{root}/step_2.pt")
    fs.pipe_file(f"{bucket}/run/notes.txt", b"notes")
    FORMATS["cerebras"](3, root)
    assert is_saved(f"{root}/step_2.pt", 2)
    assert not delete(targets([root]))
    assert left(root) == ["notes.txt", "step_2.pt"]


def test_objects_below_are_not_overwritten(fs: CSXFileSystem, bucket: str) -> None:
    """A save, or a copy, whose objects have the names of others' below the folder is refused, and nothing changes."""
    root = f"s3://{bucket}/run"
    FORMATS["cerebras"](1, root)
    FORMATS["cerebras"](2, f"{root}/b")
    with pytest.raises(FileExistsError, match="other files"):
        save({"b/w": torch.ones(1)}, root, format="cerebras")
    save({"b/w": torch.ones(1)}, f"s3://{bucket}/other", format="cerebras")
    with pytest.raises(FileExistsError, match="other files"):
        copy(f"s3://{bucket}/other", root, overwrite=True)
    assert is_saved(root, 1)
    assert is_saved(f"{root}/b", 2)


def test_what_a_killed_save_left_goes(fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of the former checkpoint that a killed save has not deleted go with the next save, or the deletion."""

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for ended_by in ("save", "delete"):
        root = f"s3://{bucket}/{ended_by}"
        save({"old": torch.ones(1), "y/old": torch.ones(1)}, root, format="cerebras")
        save(state(2), f"{root}/x", format="cerebras")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("fsspec_csx.formats.cerebras.writer.sync", die)
            FORMATS["cerebras"](3, root)
        assert "y/old" in left(root)
        if ended_by == "save":
            FORMATS["cerebras"](4, root)
            assert is_saved(root, 4)
        assert not delete(targets([root]))
        assert is_saved(f"{root}/x", 2)
        assert {name.partition("/")[0] for name in left(root)} == {"x"}


def test_own_names(tmp_path: Path) -> None:
    """Metadata that may not name all objects has those of the folder itself; what was marked has what it names."""
    held = [NAME, "w", "b/w", "b/c/w", "notes.txt"]
    finished = {"w.__metadata__": "{}", "b/c/w.__metadata__": "{}", "__SUCCESS__": True}
    assert split_owned(encoded(finished), held)[0] == [NAME, "w", "b/c/w"]
    begun = {**finished, "__SUCCESS__": None}
    assert split_owned(encoded(begun), held)[0] == [NAME, "w", "b/c/w", "notes.txt"]
    for damaged in (b"", b"nothing", encoded({})):
        assert split_owned(damaged, held)[0] == [NAME, "w", "notes.txt"]
    assert split_owned(encoded({"__fsspec_csx__": '{"objects": ["b/w"]}'}), held)[0] == [NAME, "b/w"]
    for wrong in ("[]", "nothing", "{}", '{"objects": 1}', '{"objects": [["w"], "w"]}', '{"objects": [1, {}]}'):
        assert NAME in split_owned(encoded({"__fsspec_csx__": wrong}), held)[0]
    assert decoded((changed(tmp_path / "x", "bf16") / NAME).read_bytes(), name="x")


def test_other_checkpoints_in_the_folder_stay(fs: CSXFileSystem, bucket: str) -> None:
    """Checkpoints that lie in the folder of a Cerebras one, even a model of Hugging Face, are not deleted with it."""
    root = f"s3://{bucket}/run"
    FORMATS["cerebras"](1, root)
    FORMATS["torch"](2, f"{root}/model.safetensors")
    FORMATS["huggingface"](3, f"s3://{bucket}/other")
    fs.pipe_file(f"{bucket}/run/model-a.safetensors.index.json", b"{}")
    assert not delete(targets([root]))
    assert left(root) == ["model-a.safetensors.index.json", "model.safetensors"]
    assert is_saved(f"{root}/model.safetensors", 2)


def test_metadata_that_names_others(fs: CSXFileSystem, bucket: str) -> None:
    """Objects of checkpoints below stay, though the metadata above names them; it is neither copied nor moved."""
    root = f"s3://{bucket}/run"
    below = [f"{root}/{name}" for name in FOLDERS]

    def save_hostile() -> None:
        FORMATS["cerebras"](1, root)
        found = decoded(fs.cat_file(f"{bucket}/run/{NAME}"), name=root)
        names = [*left(root), f"../other/{NAME}", "../other/w"]
        found |= {f"{name}.__metadata__": found["w.__metadata__"] for name in names if "/" in name}
        fs.pipe_file(f"{bucket}/run/{NAME}", encoded(found))

    FORMATS["cerebras"](1, root)
    for name, path in zip(FOLDERS, below, strict=True):
        FORMATS[name](2, path)
    FORMATS["cerebras"](3, f"s3://{bucket}/other")
    save_hostile()
    for way in (copy, move):
        with pytest.raises(ValueError, match="is of the checkpoint in that folder"):
            way(root, f"s3://{bucket}/copy")
    FORMATS["cerebras"](4, root)
    assert is_saved(root, 4)
    save_hostile()
    assert not delete(targets([root]))
    assert all(is_saved(path, 2) for path in below)
    assert is_saved(f"s3://{bucket}/other", 3)


def test_objects_are_not_put_among_those_of_others(bucket: str) -> None:
    """A save or a copy leaves the folders of checkpoints below alone, also where there is no checkpoint above yet."""
    root = f"s3://{bucket}/run"
    FORMATS["cerebras"](2, f"{root}/b")
    for names in ("b/w", "b/more"):
        save({names: torch.ones(1)}, f"s3://{bucket}/other", format="cerebras")
        for overwrite in (False, True):
            with pytest.raises(FileExistsError):
                copy(f"s3://{bucket}/other", root, overwrite=overwrite)
    FORMATS["cerebras"](1, f"s3://{bucket}/top")
    copy(f"s3://{bucket}/top", root)
    with pytest.raises(FileExistsError, match="other files"):
        save({"b/more": torch.ones(1)}, root, format="cerebras")
    assert is_saved(root, 1)
    assert is_saved(f"{root}/b", 2)
    assert len(left(root)) == 6


def test_saved_anew_before_it_is_copied(bucket: str) -> None:
    """A checkpoint that is saved again after its objects were looked up is neither copied nor deleted."""
    root = f"s3://{bucket}/run"
    FORMATS["cerebras"](1, root)
    found = CheckpointFolder(Directory(root))
    save({**state(2), "more": torch.ones(1)}, root, format="cerebras")
    with pytest.raises(OSError, match="changed while it was copied"):
        FolderCopy(found, Directory(f"s3://{bucket}/moved"), Callback(), overwrite=False, moving=True).run()
    assert torch.equal(load(root)["more"], torch.ones(1))


@pytest.mark.slow
def test_damaged_metadata_and_objects_below(
    fs: CSXFileSystem, bucket: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Objects in folders below that damaged metadata does not name stay, and every verb names them."""
    root, other = f"s3://{bucket}/run", f"s3://{bucket}/other"
    nested = {"model/deep/w": torch.ones(2), "v": torch.ones(1)}
    FORMATS["cerebras"](3, other)

    def save_damaged() -> None:
        for name in left(root):
            fs.rm_file(f"{bucket}/run/{name}")
        save(nested, root, format="cerebras")
        FORMATS["cerebras"](2, f"{root}/below")
        fs.pipe_file(f"{bucket}/run/{NAME}", b"damaged")

    save_damaged()
    for way in (copy, move):
        with pytest.raises(CheckpointError, match="'model/deep/w'"):
            way(root, f"s3://{bucket}/copy")
    assert run("delete", "--dry-run", root) == 0
    assert "1 file in folders below may be of it, and stay" in capsys.readouterr().out
    assert run("delete", "--yes", root) != 0
    assert "'model/deep/w'. They are left." in capsys.readouterr().err
    assert [name for name in left(root) if not name.startswith("below/")] == ["model/deep/w"]
    for replace in (lambda: FORMATS["cerebras"](3, root), lambda: copy(other, root, overwrite=True)):
        save_damaged()
        caplog.clear()
        replace()
        assert "'model/deep/w'. They stay" in caplog.text
        assert is_saved(root, 3)
        assert "model/deep/w" in left(root)
    assert is_saved(f"{root}/below", 2)


def test_moved_where_copies_get_more_metadata(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some stores add a time to the user metadata of a copy: what the source has is what a move compares."""
    source, target = f"s3://{bucket}/run", f"s3://{bucket}/moved"
    save(state(1), source, format="cerebras")
    proxy.faults = [
        Fault("HEAD", times=1000, when=lambda asked: "/moved/" in asked.path, headers={"x-amz-meta-mtime": "1"})
    ]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    move(source, target)
    assert is_saved(target, 1)
    assert left(source) == []
    assert proxy.faults[0].done > 0
