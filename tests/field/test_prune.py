"""list and prune beside files of other tools and stopped copies: no incomplete checkpoint replaces a complete one."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch
from commands import DONE, FAILED, run
from hypothesis import given
from hypothesis import strategies as st
from roots import fill, left
from roots import manifest as manifest_of
from torch.distributed.checkpoint.metadata import MetadataIndex

from fsspec_csx import distributed, load, save
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.manage.list import ListedCheckpoint, check_complete, checkpoints, latest_of
from fsspec_csx.manage.naming import parse_name
from fsspec_csx.manage.prune import plan, prune
from fsspec_csx.trainer import Checkpoint


def sharded(root: str, step: int, *, shards: int = 2, size: int = 4) -> str:
    """A checkpoint of torch.distributed.checkpoint, whose manifest counts so many bytes in each shard."""
    names = [f"__{rank}_0.distcp" for rank in range(shards)]
    fill(root, *(f"checkpoint_{step}/{name}" for name in names))
    fill(root, f"checkpoint_{step}/.metadata", data=manifest_of(*names, size=size))
    return f"{root}/checkpoint_{step}"


def newest(root: str) -> str | None:
    """The name of the newest whole one."""
    found = latest_of(checkpoints(root))
    return found.path.rpartition("/")[2] if found else None


@pytest.mark.parametrize("flaw", ["missing", "short", "damaged manifest"])
def test_sharded_that_is_not_whole(root: str, flaw: str) -> None:
    """A folder that lacks a shard, or a part of one, is neither the newest nor one of those kept; and it stays."""
    for step in (100, 200):
        sharded(root, step)
    sharded(root, 300, size=5 if flaw == "short" else 4)
    if flaw == "missing":
        fill(root, "checkpoint_300/.metadata", data=manifest_of("__0_0.distcp", "__1_0.distcp", "__2_0.distcp"))
    if flaw == "damaged manifest":
        fill(root, "checkpoint_300/.metadata", data=b"damaged")
    assert newest(root) == "checkpoint_200"
    done = prune(root, 1)
    assert [each.step for each in done.kept] == [200, 300]
    assert [*done.damaged] == [f"{root}/checkpoint_300"]
    assert {name.partition("/")[0] for name in left(root)} == {"checkpoint_200", "checkpoint_300"}


def test_dry_run_says_what_is_done(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What a dry run shows is what is deleted then, where the newest is not whole, too."""
    for step in (100, 200, 300):
        sharded(root, step, size=5 if step == 300 else 4)
    assert run("prune", root, "--keep", "1", "--dry-run") == DONE
    shown = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[:3]]
    assert shown == [["keep", "200"], ["damaged", "300"], ["delete", "100"]]
    assert run("prune", root, "--keep", "1", "--yes") == DONE
    assert not any(name.startswith("checkpoint_100/") for name in left(root))


def test_index_without_a_shard(tmp_path: Path) -> None:
    """A Hugging Face folder that lacks what its index names, or one of its numbered shards, is not whole."""
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    fill(str(tmp_path), "x/model.safetensors.index.json", data=index)
    fill(str(tmp_path), "x/model-00001-of-00002.safetensors", "x/model-00002-of-00002.safetensors")
    check_complete(f"{tmp_path}/x")
    for text in (index.replace(b"2.safe", b"3.safe"), b"{}", b"[", b'{"weight_map": {"a": 1}}'):
        fill(str(tmp_path), "x/model.safetensors.index.json", data=text)
        with pytest.raises(ValueError, match="index"):
            check_complete(f"{tmp_path}/x")
    fill(str(tmp_path), "x/model.safetensors.index.json", data=index)
    os.unlink(tmp_path / "x" / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="lacks model-00002-of-00002"):
        check_complete(f"{tmp_path}/x")


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        (["G_100.pth", "D_100.pth"], ["G_200.pth", "D_200.pth"]),
        (
            ["model_step_9.pt", "ema_step_9.pt", "optim_step_9.pt"],
            ["model_step_10.pt", "ema_step_10.pt", "optim_step_10.pt"],
        ),
        (["epoch=0-step=5-loss=0.9.ckpt"], ["epoch=1-step=10-loss=0.1.ckpt"]),
        (["checkpoint_1.pt", "checkpoint_1_ema.pt"], ["checkpoint_2.pt", "checkpoint_2_ema.pt"]),
        (["epoch_1_rank0.pt", "epoch_1_rank1.pt"], ["epoch_2_rank0.pt", "epoch_2_rank1.pt"]),
    ],
)
def test_files_of_one_step(root: str, older: list[str], newer: list[str]) -> None:
    """The files of a step stay or go together."""
    for name in (*newer, *older):
        save([1], f"{root}/{name}")
    assert prune(root, 1).failed == {}
    assert left(root) == sorted(newer)


def test_half_a_pair(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A step whose second file was not written any more does not count, is not the newest, and stays."""
    for name in ("G_100.pth", "D_100.pth", "G_200.pth", "D_200.pth", "G_300.pth"):
        save([1], f"{root}/{name}")
    assert newest(root) in ("G_200.pth", "D_200.pth")
    assert run("prune", root, "--keep", "1", "--yes") == DONE
    assert "G_300.pth is kept and does not count: it lacks D_#.pth, which other steps have." in capsys.readouterr().out
    assert left(root) == ["D_200.pth", "G_200.pth", "G_300.pth"]


def test_two_runs(root: str) -> None:
    """The newest of each run stay, where names show that there are two."""
    for name in ("old_step_100.pt", "old_step_200.pt", "new_step_10.pt", "new_step_20.pt"):
        save([1], f"{root}/{name}")
    prune(root, 1)
    assert left(root) == ["new_step_20.pt", "old_step_200.pt"]


def test_steps_that_begin_anew(root: str) -> None:
    """Where each epoch counts its own steps it is not known which step is older, and nothing is deleted."""
    for name in ("epoch=0-step=500.ckpt", "epoch=1-step=100.ckpt", "epoch=1-step=500.ckpt"):
        save([1], f"{root}/{name}")
    done = prune(root, 1)
    assert (done.to_delete, len(done.uncounted)) == ([], 3)


def timed(root: Path, *names: str) -> None:
    """Checkpoints that were written one after the other."""
    for time, name in enumerate(names, 10**9):
        save([1], root / name)
        os.utime(root / name, (time, time))


def test_no_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If no name has a step, the newest is by time, and nothing is deleted without --by time."""
    names = [f"model-val_loss={loss}.ckpt" for loss in ("0.93", "0.41", "0.08")]
    timed(tmp_path, *names)
    assert newest(str(tmp_path)) == names[2]
    assert run("prune", str(tmp_path), "--keep", "1", "--yes") == FAILED
    assert "--by time" in capsys.readouterr().err
    assert left(str(tmp_path)) == sorted(names)
    assert run("prune", str(tmp_path), "--keep", "1", "--yes", "--by", "time") == DONE
    assert left(str(tmp_path)) == [names[2]]


def test_by_time(tmp_path: Path) -> None:
    """By time, shards of one file stay together, and of two that were written at once none is taken for older."""
    timed(tmp_path, "consolidated.00.pth", "a.pt", "consolidated.01.pth", "checkpoint_900.pt", "b.pt", "c.pt")
    os.utime(tmp_path / "c.pt", (10**9 + 4,) * 2)
    prune(tmp_path, 3, by="time")
    assert left(str(tmp_path)) == ["b.pt", "c.pt", "checkpoint_900.pt"]
    timed(tmp_path, "a.pt", "consolidated.00.pth", "consolidated.01.pth", "checkpoint_900.pt", "b.pt")
    os.utime(tmp_path / "c.pt", (10**9 + 4,) * 2)
    prune(tmp_path, 1, by="time")
    assert left(str(tmp_path)) == ["b.pt", "c.pt"]


def test_best_and_last(root: str) -> None:
    """A file for the best or the last has rules of its own: it stays, and does not make other steps lack anything."""
    for name in ("checkpoint_1.pt", "best_step_1.pt", "checkpoint_2.pt", "checkpoint_3.pt", "last.pt", "model.bin"):
        save([1], f"{root}/{name}")
    prune(root, 1)
    assert left(root) == ["best_step_1.pt", "checkpoint_3.pt", "last.pt", "model.bin"]


def test_best_and_last_by_time(tmp_path: Path) -> None:
    """They stay by time too, and count as nothing; if there are no others, the newest of them is kept."""
    timed(tmp_path, "best_step_1.pt", "mine.pt", "yours.pt", "last.pt")
    assert {Path(path).name for path in prune(tmp_path, 1, by="time").uncounted} == {"best_step_1.pt", "last.pt"}
    assert left(str(tmp_path)) == ["best_step_1.pt", "last.pt", "yours.pt"]
    os.remove(tmp_path / "yours.pt")
    prune(tmp_path, 1, by="time")
    assert left(str(tmp_path)) == ["last.pt"]


def test_some_without_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where one of them has no step, which are the newest is unknown: nothing is deleted, and it is named."""
    names = ["mine.pt", "checkpoint_1.pt", "checkpoint_2.pt"]
    timed(tmp_path, *names)
    fill(str(tmp_path), "notes.txt")
    for more in ((), ("--dry-run",)):
        assert run("prune", str(tmp_path), "--keep", "1", "--yes", *more) == FAILED
        assert "mine.pt has no step in the name" in capsys.readouterr().err
        assert left(str(tmp_path)) == sorted([*names, "notes.txt"])
    assert run("prune", str(tmp_path), "--keep", "3", "--yes") == DONE  # nothing has to be sorted
    assert run("prune", str(tmp_path), "--keep", "1", "--yes", "--by", "time") == DONE
    assert left(str(tmp_path)) == ["checkpoint_2.pt", "notes.txt"]


NAMES = st.lists(
    st.builds(
        lambda pattern, step: pattern.format(step),
        st.sampled_from(
            ["G_{}.pth", "D_{}.pth", "run_step_{}.pt", "epoch={}.ckpt", "model-loss={}.5.ckpt", "last.ckpt"]
        ),
        st.integers(0, 30),
    ),
    unique=True,
    max_size=12,
)


@given(NAMES, st.integers(1, 3), st.sets(st.integers(0, 11)))
def test_no_newest_is_lost(names: list[str], keep: int, damaged: set[int]) -> None:
    """Whatever lies together: the newest whole file of each sort stays, and files of a step stay or go together."""
    found = [ListedCheckpoint(f"/run/{name}", parse_name(name).step, None, 1, 1, False) for name in names]
    broken = [each.path for number, each in enumerate(found) if number in damaged]
    planned = plan(found, keep, damage_of=lambda each: OSError("damaged") if each.path in broken else None)
    kept, to_delete = planned.kept, planned.to_delete
    assert sorted([*kept, *to_delete], key=str) == sorted(found, key=str)
    families: dict[str, list[ListedCheckpoint]] = {}
    for each in found:
        if each.path not in broken:
            families.setdefault(parse_name(each.path).family, []).append(each)
    for members in families.values():
        assert max(members, key=lambda each: each.step if each.step is not None else -1) in kept
    fates = {(parse_name(each.path).moment, each in kept) for each in found if each.path.endswith(".pth")}
    assert len(fates) == len({moment for moment, _ in fates})
    assert not any(each.step is None for each in to_delete)


def test_folder_that_is_not_read(root: str) -> None:
    """What list calls a checkpoint is one for load."""
    torch_file = {"w": torch.ones(2)}
    save(torch_file, f"{root}/checkpoint_1.mdl")
    fill(
        root,
        "checkpoint-2/model.safetensors.index.json",
        data=b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}',
    )
    save({"a": torch.ones(2)}, f"{root}/checkpoint-2/model-00001-of-00001.safetensors")
    for each in checkpoints(root):
        assert load(each.path)


def test_trainer_resumes_from_a_whole_one(root: str) -> None:
    """The Trainer passes over a folder that lacks a shard, as list --latest does."""
    for step in (1, 2):
        distributed.save({"model": {"w": torch.ones(2)}, "global_step": step}, f"{root}/checkpoint_{step}.mdl")
    fs, path = fsspec.url_to_fs(f"{root}/checkpoint_2.mdl")
    metadata = manifest.read(ShardedFolder(fs, path, "it"))
    metadata.storage_data[MetadataIndex("more")] = manifest.place("__1_0.distcp", 0, 4)
    fs.pipe_file(f"{path}/.metadata", pickle.dumps(metadata))
    assert newest(root) == "checkpoint_1.mdl"
    callback = Checkpoint(checkpoint_root=root)
    callback.root = root
    trainer = SimpleNamespace(logger=logging.getLogger("trainer"))
    assert callback.get_latest_checkpoint(trainer) == f"{root}/checkpoint_1.mdl"  # type: ignore[arg-type]
